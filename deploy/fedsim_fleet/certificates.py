"""The format of the lab's certificates: X.509 with ECDSA P-256, a name and a role. No files and no clock here.

A host's certificate contains exactly one name (SAN DNS) and one role (SAN URI). Both are set by the signer; of a
signing request only the public key is used, and the proof that the requester has the private key.

People import the authority of the web's certificate into their browsers. It is another one than the hosts', and is
constrained to the web's names (RFC 5280, 4.2.1.10): browsers accept nothing else that it signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from fedsim.errors import BadInput
from fedsim.spool.files import Role
from fedsim.wire.peer import Identity
from fedsim.wire.tls import ROLE_PREFIX, owner_of, signed_by

# A host whose clock is slightly slow should accept a new certificate immediately.
CLOCK_SKEW: Final = timedelta(minutes=5)
MAX_REQUEST_BYTES: Final = 64 << 10
# Days before the expiry: a control machine may be off for two months, and the next run still renews in time.
RENEW_DAYS: Final = 90
# The use of the certificate that nginx presents to browsers; it is not a role, so no daemon accepts it from a peer.
HTTPS: Final = "https"
Use = Role | Literal["https"]
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


def make_authority(
    key: ec.EllipticCurvePrivateKey, name: str, now: datetime, days: int, permitted: Sequence[str] = ()
) -> x509.Certificate:
    """The CA's own certificate. Its subject contains a part of its key, which distinguishes authorities of one name.

    With `permitted` names and addresses it signs for web pages of these names only.
    """
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
    if permitted:
        builder = builder.add_extension(_constraints(permitted), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())


def permitted_names(authority: x509.Certificate) -> tuple[str, ...]:
    """The names and addresses to which an authority is constrained; empty if it is the hosts'."""
    try:
        found = authority.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(one.value).split("/")[0] for one in found)  # an address is a network of one


def make_certificate(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    name: str,
    use: Use,
    now: datetime,
    days: int,
) -> x509.Certificate:
    """The certificate of a host, or of the web for all names that its authority permits.

    It expires no later than the authority's.
    """
    end = min(now + timedelta(days=days), authority.not_valid_after_utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _dated(authority.subject, subject, key, now, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    usages = (ExtendedKeyUsageOID.SERVER_AUTH,) if use == HTTPS else USAGES[use]
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    if use == HTTPS:
        names = list(map(_general_name, permitted_names(authority)))
    else:
        names.append(x509.UniformResourceIdentifier(ROLE_PREFIX + use))
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return builder.add_extension(issuer, critical=False).sign(authority_key, hashes.SHA256())


def mismatch(certificate: x509.Certificate, name: str, use: Use, authority: x509.Certificate) -> str:
    """Why this is not a certificate of a name for this use by the authority; empty if it is."""
    if use == HTTPS:
        return "" if signed_by(certificate, authority) else "is not signed by the authority of the web's certificate"
    try:
        found = owner_of(certificate)
    except (ValueError, x509.ExtensionNotFound) as error:
        return f"was not issued by fedsim-ca: {error}"
    if found != (owner := Identity(name, use)):
        return f"belongs to {found}, not to {owner}"
    return "" if signed_by(certificate, authority) else "is not signed by the lab's authority"


def is_due(certificate: x509.Certificate, authority: x509.Certificate, now: datetime) -> bool:
    """Whether the certificate is to be renewed now; not if a new one would expire with the authority as well."""
    end = certificate.not_valid_after_utc
    return end - now < timedelta(days=RENEW_DAYS) and end < authority.not_valid_after_utc


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


def _constraints(permitted: Sequence[str]) -> x509.NameConstraints:
    """Only these names and addresses. A kind of which none is permitted is excluded, or else all of it were allowed."""
    subtrees: list[x509.GeneralName] = [
        x509.IPAddress(ip_network(name.value)) if isinstance(name, x509.IPAddress) else name
        for name in map(_general_name, permitted)
    ]
    excluded: list[x509.GeneralName] = []
    if not any(isinstance(name, x509.IPAddress) for name in subtrees):
        excluded += [x509.IPAddress(ip_network("0.0.0.0/0")), x509.IPAddress(ip_network("::/0"))]
    if not any(isinstance(name, x509.DNSName) for name in subtrees):
        excluded.append(x509.DNSName(""))
    return x509.NameConstraints(subtrees, excluded or None)


def _general_name(name: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


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
