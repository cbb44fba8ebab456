"""The authority of the web's certificate, which people import into browsers: it vouches for the web alone."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsim.errors import BadInput
from fedsim.spool.files import Role
from fedsim.wire.tls import owner_of
from fedsim_fleet.authority import Authority
from fedsim_fleet.certificates import HTTPS, make_request, new_key, pem

NAMES = ("server", "198.18.0.10")
NOW = datetime.now(UTC)


def secret() -> bytes:
    return b"a passphrase for tests"


@pytest.fixture
def web(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "web-ca", secret, name="web", permitted=NAMES)


@pytest.fixture
def lab(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "ca", secret, name="lab")


def stolen(authority: Authority, *names: x509.GeneralName) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """What a thief of the authority's key signs: a certificate for any name, and its key."""
    signer = serialization.load_pem_private_key((authority.folder / "ca.key").read_bytes(), secret())
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = new_key()
    builder = x509.CertificateBuilder().issuer_name(authority.certificate.subject).public_key(key.public_key())
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anything")]))
    builder = builder.not_valid_before(NOW - timedelta(minutes=5)).not_valid_after(NOW + timedelta(days=1))
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return builder.add_extension(identifier, critical=False).sign(signer, hashes.SHA256()), key


def connect(
    folder: Path, trusted: Authority, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, name: str
) -> None:
    """Connect to `name` as a browser does, in memory; raises `ssl.SSLError` if the certificate is refused."""
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "chain.pem").write_bytes(private + pem(certificate))
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    there.load_cert_chain(folder / "chain.pem")
    here = ssl.create_default_context(cafile=trusted.folder / "ca.crt")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    browser = here.wrap_bio(down, up, server_hostname=name)
    server = there.wrap_bio(up, down, server_side=True)
    for _ in range(3):
        for side in (browser, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert browser.version()


def issue(authority: Authority, name: str = "server") -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = new_key()
    issued = authority.sign(pem(make_request(key, name)), name, HTTPS)
    return x509.load_pem_x509_certificate(issued.certificate.encode()), key


def test_its_certificate_says_critically_what_it_may_sign(web: Authority) -> None:
    constraints = web.certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    basic = web.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = web.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert web.permitted == NAMES


def test_a_browser_that_trusts_it_accepts_the_web_by_each_of_its_names(web: Authority, tmp_path: Path) -> None:
    certificate, key = issue(web)
    for name in NAMES:
        connect(tmp_path, web, certificate, key, name)


@pytest.mark.parametrize("permitted", [NAMES, ("server",), ("198.18.0.10",), ("server", "2001:db8::1")])
@pytest.mark.parametrize("name", ["bank.example", "203.0.113.9", "2001:db8::2", "notserver"])
def test_a_certificate_that_it_signs_for_another_name_is_refused(
    permitted: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    web = Authority.make(tmp_path / "web-ca", secret, name="web", permitted=permitted)
    try:
        other: x509.GeneralName = x509.IPAddress(ip_address(name))
    except ValueError:
        other = x509.DNSName(name)
    certificate, key = stolen(web, other)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"permitted subtree violation|excluded subtree violation"):
        connect(tmp_path, web, certificate, key, name)


def test_hosts_do_not_trust_it_and_browsers_that_trust_it_do_not_trust_hosts(
    web: Authority, lab: Authority, tmp_path: Path
) -> None:
    certificate, key = issue(web)
    with pytest.raises(ssl.SSLCertVerificationError, match="issuer"):
        connect(tmp_path, lab, certificate, key, "server")
    with pytest.raises(ValueError, match="one role of fedsim"):
        owner_of(certificate)
    key = new_key()
    host = lab.sign(pem(make_request(key, "server")), "server", Role.SERVER)
    with pytest.raises(ssl.SSLCertVerificationError, match="issuer"):
        connect(tmp_path, web, x509.load_pem_x509_certificate(host.certificate.encode()), key, "server")


def test_neither_authority_signs_for_what_the_other_is(web: Authority, lab: Authority) -> None:
    for authority, name, use in ((web, "server", Role.SERVER), (web, "other", HTTPS), (lab, "server", HTTPS)):
        with pytest.raises(BadInput, match="needs another one"):
            authority.sign(pem(make_request(new_key(), name)), name, use)
        assert authority.issued() == []
