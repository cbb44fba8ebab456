"""Files of TLS that cannot be used are named, with what to do; why a certificate is refused is said in words."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedsim.config import TlsConfig
from fedsim.config.secrets import find_secret
from fedsim.errors import ConfigError, Refused
from fedsim.spool.files import Role
from fedsim.wire import Identity
from fedsim.wire.tls import Credentials, explain, judge
from fedsim_fleet.authority import Authority
from fedsim_fleet.certificates import make_revocation_list, new_key, pem
from fedsim_fleet.request import request_for

SERVER = Identity("server", Role.SERVER)


def passphrase() -> bytes:
    return b"a passphrase for tests"


def sign(authority: Authority, folder: Path, identity: Identity) -> None:
    request, _ = request_for(folder / f"{identity.name}.key", identity.name)
    issued = authority.sign(request, identity.name, identity.role)
    (folder / f"{identity.name}.crt").write_text(issued.certificate, encoding="ascii")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, another one, and the certificates of `server` and `node-1`."""
    folder = tmp_path_factory.mktemp("pki")
    authority = Authority.make(folder / "ca", passphrase, name="test lab")
    Authority.make(folder / "other", passphrase, name="test lab")
    sign(authority, folder, SERVER)
    sign(authority, folder, Identity("node-1", Role.CLIENT))
    return folder


@pytest.fixture
def tls(made: Path, tmp_path: Path) -> TlsConfig:
    """The files of `server`, each a copy that a test may spoil."""
    files = {
        "certificate": made / "server.crt",
        "key": made / "server.key",
        "authority": made / "ca" / "ca.crt",
        "revoked": made / "ca" / "crl.pem",
    }
    for name, path in files.items():
        (tmp_path / name).write_bytes(path.read_bytes())
    return TlsConfig(**{name: tmp_path / name for name in files})


def problem(tls: TlsConfig, me: Identity = SERVER) -> str:
    with pytest.raises(ConfigError) as caught:
        Credentials(tls, me)
    (told,) = caught.value.problems
    return f"{caught.value.source}: {told}"


def test_good_files_are_taken_and_say_when_the_certificate_ends(tls: TlsConfig) -> None:
    credentials = Credentials(tls, SERVER)
    assert 363 < (credentials.not_after - datetime.now(UTC).timestamp()) / 86_400 < 366
    assert credentials.listening.minimum_version is credentials.dialing.minimum_version is ssl.TLSVersion.TLSv1_3
    assert Credentials.of(None, SERVER) is None


@pytest.mark.parametrize("name", ["certificate", "key", "authority", "revoked"])
def test_a_file_that_is_missing_or_no_pem_is_named_with_its_key(tls: TlsConfig, name: str) -> None:
    path: Path = getattr(tls, name)
    path.write_text("nothing of the kind", encoding="utf-8")
    assert problem(tls).startswith(f"tls.{name}: {path} ")
    path.unlink()
    assert problem(tls).startswith(f"tls.{name}: {path} cannot be read: No such file")


def test_a_key_that_is_not_the_certificates_is_named_as_such(tls: TlsConfig, made: Path) -> None:
    tls.key.write_bytes((made / "node-1.key").read_bytes())
    told = (
        f"tls.key: {tls.key} is not the key of {tls.certificate}: install the certificate that was signed for this key"
    )
    assert problem(tls) == told


def test_an_encrypted_key_is_refused_with_the_reason(tls: TlsConfig) -> None:
    encryption = serialization.BestAvailableEncryption(b"secret")
    private = new_key().private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    tls.key.write_bytes(private)
    assert "is encrypted; a daemon needs it without a passphrase" in problem(tls)


def test_another_hosts_certificate_or_role_is_noticed_before_anybody_is_dialled(tls: TlsConfig) -> None:
    told = f"{tls.certificate} is the certificate of server server, this is client server; install its own"
    assert told in problem(tls, Identity("server", Role.CLIENT))
    assert "this is server elsewhere" in problem(tls, Identity("elsewhere", Role.SERVER))


def test_every_authority_that_is_believed_needs_its_list(tls: TlsConfig, made: Path) -> None:
    assert tls.revoked is not None
    ours = tls.revoked.read_bytes()
    theirs = (made / "other" / "crl.pem").read_bytes()
    tls.revoked.write_bytes(theirs)  # a list that the authority did not sign counts for nothing
    assert "contains no list of the authority" in problem(tls)
    with tls.authority.open("ab") as file:
        file.write((made / "other" / "ca.crt").read_bytes())
    tls.revoked.write_bytes(ours)
    assert "copy its crl.pem there" in problem(tls)
    tls.revoked.write_bytes(ours + theirs)
    Credentials(tls, SERVER)


def test_a_list_in_the_authoritys_name_by_another_key_is_not_believed(tls: TlsConfig) -> None:
    authority = x509.load_pem_x509_certificate(tls.authority.read_bytes())
    forged = make_revocation_list(authority, new_key(), [], 9, datetime.now(UTC))
    assert tls.revoked is not None
    tls.revoked.write_bytes(pem(forged))
    assert "contains no list of the authority" in problem(tls)


# ---------------------------------------------------------------- judging


def der(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text(encoding="ascii"))


def test_whose_certificate_it_is(tls: TlsConfig, made: Path) -> None:
    found = Credentials(tls, SERVER).verify(der(made / "node-1.crt"), listens=False)
    assert found.owner == Identity("node-1", Role.CLIENT)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda _: b"no certificate", "not made by fedsim-ca"),
        (lambda made: der(made / "other" / "ca.crt"), "an authority that is not trusted here"),
        (lambda made: der(made / "ca" / "ca.crt"), "not made by fedsim-ca"),
    ],
)
def test_what_is_not_the_labs_is_not_believed(
    tls: TlsConfig, made: Path, make: Callable[[Path], bytes], told: str
) -> None:
    with pytest.raises(Refused, match=told) as caught:
        Credentials(tls, SERVER).verify(make(made), listens=False)
    assert (caught.value.code, caught.value.retry) == ("untrusted", True)


def test_without_tls_nothing_is_to_be_proven_and_with_it_nothing_plain_is_believed(tls: TlsConfig) -> None:
    assert judge(None, None, listens=True) is None
    with pytest.raises(Refused, match="not encrypted"):
        judge(Credentials(tls, SERVER), None, listens=True)


def test_trouble_that_has_no_words_of_ours_is_still_readable() -> None:
    error = ssl.SSLError(1, "[SSL: SOMETHING_NEW] something new (_ssl.c:1)")
    error.reason = "SOMETHING_NEW"
    assert explain(error) == "TLS failed: something new"
    error.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert explain(error).startswith("it refuses this host's certificate or TLS: certificate required; see the other")


# ---------------------------------------------------------------- secrets


def test_a_secret_is_found_by_path_or_in_the_first_folder_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    monkeypatch.delenv("FEDSIM_CREDENTIALS", raising=False)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "c"))
    for name in ("b", "c"):
        (tmp_path / name / "database").write_text(name, encoding="utf-8")
    name = Path("database")
    assert find_secret(name) == tmp_path / "c" / "database"
    monkeypatch.setenv("FEDSIM_CREDENTIALS", f"{tmp_path}/a:{tmp_path}/b")
    assert find_secret(name) == tmp_path / "b" / "database"
    (tmp_path / "a" / "database").write_text("a", encoding="utf-8")
    assert find_secret(name) == tmp_path / "a" / "database"
    assert find_secret(tmp_path / "anything") == tmp_path / "anything"


def test_a_credential_that_is_not_there_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_CREDENTIALS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"no such credential in {tmp_path}") as caught:
        find_secret(Path("tls.key"))
    assert caught.value.filename == "tls.key"
    monkeypatch.delenv("FEDSIM_CREDENTIALS")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(FileNotFoundError, match="CREDENTIALS_DIRECTORY is not set; use an absolute path"):
        find_secret(Path("tls.key"))


@pytest.mark.parametrize("key", ["../tls.key", "pki/tls.key", "..", "."])
def test_a_secret_that_is_neither_a_path_nor_a_name_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="absolute path, or the bare name of a credential"):
        TlsConfig(certificate=Path("/c"), key=Path(key), authority=Path("/a"))
