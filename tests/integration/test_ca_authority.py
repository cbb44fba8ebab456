"""The lab's authority: the signer determines name and role, and every issued certificate is recorded."""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsim.errors import BadInput, NotThere
from fedsim.spool.files import Role
from fedsim_fleet.authority import Authority, Issued
from fedsim_fleet.certificates import CLOCK_SKEW, make_request, new_key, pem
from fedsim_fleet.request import request_for

SECRET = b"a passphrase for tests"
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def secret() -> bytes:
    return SECRET


def csr(name: str = "whatever it says") -> bytes:
    return pem(make_request(new_key(), name))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "ca", secret, name="test lab", clock=lambda: NOW)


def certificate(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate.encode())


def revoked_serials(authority: Authority) -> set[str]:
    crl = x509.load_pem_x509_crl((authority.folder / "crl.pem").read_bytes())
    key = authority.certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert crl.is_signature_valid(key)
    return {f"{entry.serial_number:x}" for entry in crl}


# ---------------------------------------------------------------- what is in a certificate


@pytest.mark.parametrize("role", Role)
def test_a_certificate_holds_one_name_one_role_and_only_the_usages_of_the_role(
    authority: Authority, role: Role
) -> None:
    issued = certificate(authority.sign(csr(), "node-a", role, days=30))
    issued.verify_directly_issued_by(authority.certificate)
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("node-a"), x509.UniformResourceIdentifier(f"urn:fedsim:role:{role}")]
    usages = set(issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert usages == ({ExtendedKeyUsageOID.CLIENT_AUTH} if role is Role.WEB else both)
    basic = issued.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, False)
    assert issued.not_valid_before_utc == NOW - CLOCK_SKEW
    assert issued.not_valid_after_utc == NOW + timedelta(days=30)


def test_nothing_of_a_request_but_its_public_key_gets_into_the_certificate(authority: Authority) -> None:
    key = new_key()
    builder = x509.CertificateSigningRequestBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")]))
    wanted = [x509.DNSName("server"), x509.UniformResourceIdentifier("urn:fedsim:role:server")]
    builder = builder.add_extension(x509.SubjectAlternativeName(wanted), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    issued = certificate(authority.sign(pem(builder.sign(key, hashes.SHA256())), "node-a", Role.CLIENT))
    assert issued.public_key() == key.public_key()
    assert issued.subject.rfc4514_string() == "CN=node-a"
    assert "server" not in str(issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_no_certificate_outlives_the_authority(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path, secret, name="short", days=10, clock=lambda: NOW)
    assert authority.sign(csr(), "node-a", Role.CLIENT, days=365).not_after == NOW + timedelta(days=10)
    late = Authority(tmp_path, secret, clock=lambda: NOW + timedelta(days=11))
    with pytest.raises(BadInput, match="has expired; create a new one"):
        late.sign(csr(), "node-a", Role.CLIENT)


def _changed_on_the_way() -> bytes:
    request = make_request(new_key(), "a")
    other = make_request(new_key(), "b")
    der = bytearray(request.public_bytes(Encoding.DER))
    der[-70:] = other.public_bytes(Encoding.DER)[-70:]
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)


def _with_key(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: b"-----BEGIN NONSENSE-----", "not a signing request in PEM"),
        (lambda: b"x" * 70_000, "at most 65536 bytes"),
        (lambda: _with_key(ec.generate_private_key(ec.SECP384R1())), "curve P-256, it is on the curve secp384r1"),
        (lambda: _with_key(rsa.generate_private_key(65537, 2048)), "curve P-256, it is RSA"),
        (_changed_on_the_way, "not signed by its own key"),
    ],
)
def test_a_bad_request_is_refused_with_what_to_do(authority: Authority, make: Callable[[], bytes], told: str) -> None:
    with pytest.raises(BadInput, match=f"{told}.*fedsim-ca request"):
        authority.sign(make(), "node-a", Role.CLIENT)
    assert authority.issued() == []


@pytest.mark.parametrize("name", ["", "../x", "a b", "a" * 65, "*.lab", "nöde"])
def test_a_name_that_no_daemon_could_have_is_not_certified(authority: Authority, name: str) -> None:
    with pytest.raises(BadInput, match="not a valid host name"):
        authority.sign(csr(), name, Role.CLIENT)


# ---------------------------------------------------------------- keys


def test_one_key_is_one_host_and_a_revoked_key_is_never_certified_again(authority: Authority) -> None:
    request = csr()
    first = authority.sign(request, "node-a", Role.CLIENT)
    with pytest.raises(BadInput, match="already belongs to node-a"):
        authority.sign(request, "node-b", Role.CLIENT)
    authority.revoke(first.serial)
    with pytest.raises(BadInput, match="was revoked"):
        authority.sign(request, "node-a", Role.CLIENT)


def test_the_authoritys_key_opens_only_with_its_passphrase_and_only_its_owner_may_read_it(authority: Authority) -> None:
    path = authority.folder / "ca.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    wrong = Authority(authority.folder, lambda: b"another passphrase", clock=lambda: NOW)
    with pytest.raises(BadInput, match="the passphrase is wrong"):
        wrong.sign(csr(), "node-a", Role.CLIENT)
    assert wrong.issued() == []


def test_a_short_passphrase_is_refused_and_an_authority_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="it needs 16"):
        Authority.make(tmp_path, lambda: b"short", name="lab")
    Authority.make(tmp_path, secret, name="lab")
    before = (tmp_path / "ca.key").read_bytes()
    with pytest.raises(BadInput, match="already contains an authority"):
        Authority.make(tmp_path, secret, name="lab")
    assert (tmp_path / "ca.key").read_bytes() == before


def test_a_hosts_key_is_made_for_its_owner_alone_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "host.key"
    previous = os.umask(0)
    try:
        first, made = request_for(path, "node-a")
    finally:
        os.umask(previous)
    assert made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = path.read_bytes()
    second, made_again = request_for(path, "node-a")
    assert not made_again
    assert path.read_bytes() == key
    one, other = (x509.load_pem_x509_csr(request).public_key() for request in (first, second))
    assert one == other
    assert [entry.name for entry in tmp_path.iterdir()] == ["host.key"]


def test_a_file_that_is_no_key_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "host.key"
    path.write_text("my diary", encoding="utf-8")
    with pytest.raises(BadInput, match="is not an unencrypted private key"):
        request_for(path, "node-a")
    assert path.read_text(encoding="utf-8") == "my diary"


# ---------------------------------------------------------------- revoking


def test_who_is_revoked_is_on_the_list_until_its_certificate_would_have_ended(authority: Authority) -> None:
    assert revoked_serials(authority) == set()
    gone = authority.sign(csr(), "node-a", Role.CLIENT, days=10)
    authority.sign(csr(), "node-b", Role.CLIENT)
    assert authority.revoke("node-a") == [gone.model_copy(update={"revoked": NOW})]
    assert revoked_serials(authority) == {gone.serial}
    assert authority.revoke("node-a") == []
    assert [item.state(NOW) for item in authority.issued()] == ["revoked", "valid"]
    late = Authority(authority.folder, secret, clock=lambda: NOW + timedelta(days=20))
    late.revoke("node-b")
    assert gone.serial not in revoked_serials(late)
    with pytest.raises(NotThere, match="names with one: node-a, node-b"):
        authority.revoke("node-c")


def test_after_a_rotation_all_but_the_newest_can_be_revoked(authority: Authority) -> None:
    old = [authority.sign(csr(), "node-a", Role.CLIENT) for _ in range(2)]
    new = authority.sign(csr(), "node-a", Role.CLIENT)
    assert [item.serial for item in authority.revoke("node-a", keep_newest=True)] == [item.serial for item in old]
    assert authority.revoke("node-a", keep_newest=True) == []
    assert authority.issued(new.serial)[0].state(NOW) == "valid"


def test_the_list_is_signed_again_only_when_it_must_be_and_always_when_it_is_missing(authority: Authority) -> None:
    issued = authority.sign(csr(), "node-a", Role.CLIENT)
    before = authority.revocation_list()
    assert Authority(authority.folder, lambda: b"not asked for", clock=lambda: NOW).revocation_list() == before
    authority.revoke("node-a")
    path = authority.folder / "crl.pem"
    for spoil in (path.unlink, lambda: path.write_bytes(before)):  # a power cut between index and list
        spoil()
        authority.revocation_list()
        assert revoked_serials(authority) == {issued.serial}


def test_a_certificate_is_renewed_for_the_same_key_name_and_role(authority: Authority) -> None:
    first = authority.sign(csr(), "node-a", Role.CLIENT, days=10)
    second = authority.renew("node-a", days=20)
    assert (second.key, second.name, second.role) == (first.key, "node-a", Role.CLIENT)
    assert second.serial != first.serial
    assert second.days_left(NOW) == 20
    authority.revoke("node-a")
    with pytest.raises(NotThere, match="no valid certificate"):
        authority.renew("node-a")


# ---------------------------------------------------------------- the index


def _sign_some(folder: Path, worker: int) -> None:
    authority = Authority(folder, secret)
    for number in range(8):
        authority.sign(csr(), f"node-{worker}-{number}", Role.CLIENT)
    authority.revoke(f"node-{worker}-0")


def test_processes_at_once_lose_nothing_that_was_issued_or_revoked(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path, secret, name="lab")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_sign_some, args=(tmp_path, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    names = {f"node-{worker}-{number}" for worker in range(3) for number in range(8)}
    issued = authority.issued()
    assert {item.name for item in issued} == names
    assert len({item.serial for item in issued}) == len(names)
    assert revoked_serials(authority) == {item.serial for item in issued if item.name.endswith("-0")}


def test_damaged_or_missing_files_say_what_to_do(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(NotThere, match="fedsim-ca init"):
        Authority(tmp_path / "nowhere", secret)
    (authority.folder / "index.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match="restore it from a backup"):
        authority.issued()
    (authority.folder / "ca.key").unlink()
    with pytest.raises(NotThere, match="restore it from a backup"):
        Authority(authority.folder, secret)._key()
