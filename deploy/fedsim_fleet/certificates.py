"""The format of the lab's certificates: X.509 with ECDSA P-256, a name and a role. No files and no clock here.

A host's certificate contains exactly one name (SAN DNS) and one role (SAN URI). Both are set by the signer; of a
signing request only the public key is used, and the proof that the requester has the private key.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from fedsim.errors import BadInput
from fedsim.spool.files import Role
from fedsim.wire.tls import ROLE_PREFIX

# A host whose clock is slightly slow should accept a new certificate immediately.
CLOCK_SKEW: Final = timedelta(minutes=5)
MAX_REQUEST_BYTES: Final = 64 << 10
_CURVE: Final = ec.SECP256R1
_DIALS: Final = (ExtendedKeyUsageOID.CLIENT_AUTH,)
_BOTH: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
# Server and node accept and open connections; the web only opens them.
USAGES: Final[dict[Role, tuple[ObjectIdentifier, ...]]] = {Role.SERVER: _BOTH, Role.CLIENT: _BOTH, Role.WEB: _DIALS}


def new_key() -> ec.EllipticCurvePrivateKey:
    """Generate a key of the only supported kind."""
    return ec.generate_private_key(_CURVE())


def pem(certificate: x509.Certificate | x509.CertificateRevocationList | x509.CertificateSigningRequest) -> bytes:
    """Encode as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def make_request(key: ec.EllipticCurvePrivateKey, name: str) -> x509.CertificateSigningRequest:
    """Create a signing request. `name` is only informative; the signer decides."""
    builder = x509.CertificateSigningRequestBuilder()
    return builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])).sign(key, hashes.SHA256())


def read_request(data: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a signing request (PEM); everything else in it is ignored.

    Raises:
        BadInput: it is not a signing request, is not signed by its own key, or the key is of another kind.
    """
    again = "create one on the host with: fedsim-ca request"
    if len(data) > MAX_REQUEST_BYTES:
        raise BadInput(f"a signing request has at most {MAX_REQUEST_BYTES} bytes, this has {len(data)}; {again}")
    try:
        request = x509.load_pem_x509_csr(data)
        key, proven = request.public_key(), request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise BadInput(f"this is not a signing request in PEM: {error}; {again}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVE):
        kind = f"on the curve {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
        raise BadInput(f"the request's key must be ECDSA on the curve P-256, it is {kind.lstrip('_')}; {again}")
    if not proven:
        raise BadInput(f"the request is not signed by its own key: it was modified; {again}")
    return key


def make_authority(key: ec.EllipticCurvePrivateKey, name: str, now: datetime, days: int) -> x509.Certificate:
    """The CA's own certificate. Its subject contains a part of its key, which distinguishes authorities of one name."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, identifier.digest.hex()[:16]),
        ]
    )
    builder = _dated(subject, subject, key.public_key(), now, now + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())


def make_certificate(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    name: str,
    role: Role,
    now: datetime,
    days: int,
) -> x509.Certificate:
    """The certificate of a host; it expires no later than the authority's."""
    end = min(now + timedelta(days=days), authority.not_valid_after_utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _dated(authority.subject, subject, key, now, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(USAGES[role]), critical=False)
    names: list[x509.GeneralName] = [x509.DNSName(name), x509.UniformResourceIdentifier(ROLE_PREFIX + role)]
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return builder.add_extension(issuer, critical=False).sign(authority_key, hashes.SHA256())


def make_revocation_list(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    revoked: Iterable[tuple[int, datetime]],
    number: int,
    now: datetime,
) -> x509.CertificateRevocationList:
    """A CRL of serial numbers and times of revocation.

    It is valid as long as the authority: a list that expires would stop a lab without revoked certificates.
    """
    builder = x509.CertificateRevocationListBuilder()
    builder = builder.issuer_name(authority.subject).last_update(now - CLOCK_SKEW)
    builder = builder.next_update(authority.not_valid_after_utc)
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    builder = builder.add_extension(issuer, critical=False)
    for serial, at in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(authority_key, hashes.SHA256())


def _dated(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().issuer_name(issuer).subject_name(subject).public_key(key)
    builder = builder.not_valid_before(start - CLOCK_SKEW).not_valid_after(end)
    return builder.serial_number(x509.random_serial_number())


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
