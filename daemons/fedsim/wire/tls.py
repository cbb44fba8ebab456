"""TLS credentials: this host's certificate, the trusted authorities, and their revocation lists.

In the handshake OpenSSL verifies that the other side holds the key of a certificate signed by a trusted authority.
`judge` determines whose certificate it is and whether it is still accepted; it is called at the handshake, and again
whenever the files were reloaded.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedsim.config import TlsConfig
from fedsim.config.secrets import find_secret
from fedsim.errors import ConfigError, Refused
from fedsim.spool.files import Role
from fedsim.wire.peer import Identity

ROLE_PREFIX: Final = "urn:fedsim:role:"
_LISTENS: Final = ExtendedKeyUsageOID.SERVER_AUTH
_DIALS: Final = ExtendedKeyUsageOID.CLIENT_AUTH

Read = TypeVar("Read")


@dataclass(frozen=True)
class Certificate:
    """A certificate that was accepted: its owner, and when it expires (seconds since the epoch)."""

    owner: Identity
    serial: str
    not_after: float


class Credentials:
    """This host's certificate and the authorities that it trusts. Read once; a change on disk needs a new object.

    Args:
        tls: the files.
        me: the owner that the certificate must have.

    Raises:
        ConfigError: a file cannot be read or does not match; says which, and what to do.
    """

    def __init__(self, tls: TlsConfig, me: Identity) -> None:
        own = _read(tls.certificate, "tls.certificate", x509.load_pem_x509_certificate)
        authority = _read(tls.authority, "tls.authority", lambda data: data)
        self._authorities = _read(tls.authority, "tls.authority", x509.load_pem_x509_certificates)
        self._revoked = {} if tls.revoked is None else self._read_revoked(tls.revoked)
        key = _find_key(tls, own)
        self.path = tls.certificate
        self.not_after = own.not_valid_after_utc.timestamp()
        self._check_own(tls.certificate, own, me)
        self.listening = _context(ssl.PROTOCOL_TLS_SERVER, tls.certificate, key, authority)
        self.dialing = _context(ssl.PROTOCOL_TLS_CLIENT, tls.certificate, key, authority)

    @classmethod
    def of(cls, tls: TlsConfig | None, me: Identity) -> Self | None:
        """The credentials of a configuration; None if it has no `tls:`."""
        return None if tls is None else cls(tls, me)

    def verify(self, encoded: bytes, *, listens: bool) -> Certificate:
        """Check a certificate and return its owner.

        Args:
            encoded: the certificate (DER) of the other side, which has shown that it holds the key.
            listens: whether the other side is the one that listens.

        Raises:
            Refused: `untrusted`, `expired` or `revoked`; to be retried, as its owner may get another certificate.
        """
        try:
            certificate = x509.load_der_x509_certificate(encoded)
            serial = f"{certificate.serial_number:x}"
            if not any(signed_by(certificate, authority) for authority in self._authorities):
                raise _untrusted(
                    serial, "was signed by an authority that is not trusted here; see tls.authority on both hosts"
                )
            owner = owner_of(certificate)
            usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise Refused("untrusted", f"its certificate was not made by fedsim-ca: {error}", retry=True) from error
        if (_LISTENS if listens else _DIALS) not in usages:
            task = "a host that listens" if listens else "a host that connects"
            raise _untrusted(serial, f"is not for {task}: its extended key usage says otherwise")
        until = certificate.not_valid_after_utc.timestamp()
        if until <= time.time():
            message = f"the certificate {serial} of {owner} has expired; renew it"
            raise Refused("expired", message, retry=True, who=owner.name)
        revoked = self._revoked.get((certificate.issuer.public_bytes(), certificate.serial_number))
        if revoked is not None:
            message = f"the certificate {serial} of {owner} was revoked on {revoked}"
            raise Refused("revoked", message, retry=True, who=owner.name)
        return Certificate(owner, serial, until)

    def _read_revoked(self, path: Path) -> dict[tuple[bytes, int], str]:
        """(issuer, serial number) -> date. Without a list of each authority a revoked certificate might be accepted."""
        revoked: dict[tuple[bytes, int], str] = {}
        unlisted = list(self._authorities)
        for crl in _read(path, "tls.revoked", revocation_lists):
            signers = [authority for authority in self._authorities if _signed_list(crl, authority)]
            unlisted = [authority for authority in unlisted if authority not in signers]
            if signers:  # a list of an authority that is no longer trusted does no harm
                issuer = crl.issuer.public_bytes()
                revoked |= {(issuer, item.serial_number): f"{item.revocation_date_utc:%Y-%m-%d}" for item in crl}
        if unlisted:
            name = unlisted[0].subject.rfc4514_string()
            problem = f"{path} contains no list of the authority {name}; copy its crl.pem there (fedsim-ca crl)"
            raise ConfigError("tls.revoked", [problem])
        return revoked

    @staticmethod
    def _check_own(path: Path, own: x509.Certificate, me: Identity) -> None:
        try:
            owner = owner_of(own)
        except (ValueError, x509.ExtensionNotFound) as error:
            raise ConfigError("tls.certificate", [f"{path} was not made by fedsim-ca: {error}"]) from error
        if owner != me:
            problem = f"{path} is the certificate of {owner}, this is {me}; install its own, or correct `name`"
            raise ConfigError("tls.certificate", [problem])


def judge(credentials: Credentials | None, encoded: bytes | None, *, listens: bool) -> Certificate | None:
    """Determine who the other side of a connection has proved to be; None if no proof is required.

    Args:
        credentials: of this host; without them every connection is plain, and the HELLO is accepted as it is.
        encoded: the other side's certificate (DER); None if the connection is plain.
        listens: whether the other side is the one that listens.

    Raises:
        Refused: it has proved nothing, or is not trusted (any more).
    """
    if credentials is None:
        return None
    if encoded is None:
        raise Refused("tls", "the connection is not encrypted, and `tls:` is configured now", retry=True)
    return credentials.verify(encoded, listens=listens)


def explain(error: ssl.SSLError) -> str:
    """Explain an error of TLS for people, with what to check."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    reason = error.reason or str(error)
    if "ALERT" in reason:
        alert = reason.split("ALERT_")[-1].replace("_", " ").lower()
        return f"it refuses this host's certificate or TLS: {alert}; see the other host's log"
    return _REASONS.get(reason, f"TLS failed: {reason.replace('_', ' ').lower()}")


_NOT_TLS: Final = "it does not speak TLS; `tls:` must be configured on both sides"
_BROKEN: Final = "its TLS records do not belong to this connection: they were changed or replayed"
_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it presents no certificate; every host needs one",
    "UNSUPPORTED_PROTOCOL": "it speaks an older TLS than 1.3",
    "WRONG_VERSION_NUMBER": _NOT_TLS,
    "HTTP_REQUEST": _NOT_TLS,
    "RECORD_LAYER_FAILURE": _NOT_TLS,
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": _BROKEN,
    "BAD_RECORD_TYPE": _BROKEN,
}


def _read(path: Path, key: str, parse: Callable[[bytes], Read]) -> Read:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(key, [f"{path} cannot be read: {error.strerror}; install it, or correct the path"]) from error
    return _understood(path, key, data, parse)


def _understood(path: Path, key: str, data: bytes, parse: Callable[[bytes], Read]) -> Read:
    try:
        return parse(data)
    except ValueError as error:
        raise ConfigError(key, [f"{path} cannot be understood, it must be PEM: {error}"]) from error


def _find_key(tls: TlsConfig, own: x509.Certificate) -> Path:
    """The path of the key, after checking that it is the certificate's."""
    try:
        path = find_secret(tls.key)
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError("tls.key", [f"{tls.key} cannot be read: {error.strerror}"]) from error
    except TypeError as error:
        problem = f"{tls.key} is encrypted; a daemon needs it without a passphrase, protected by its mode 0600"
        raise ConfigError("tls.key", [problem]) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("tls.key", [f"{tls.key} is not a private key in PEM: {error}"]) from error
    if key.public_key() != own.public_key():
        problem = f"{path} is not the key of {tls.certificate}: install the certificate that was signed for this key"
        raise ConfigError("tls.key", [problem])
    return path


def _context(protocol: int, certificate: Path, key: Path, authority: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # `judge` compares names; addresses may change
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # a resumed session would not be verified again
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=authority.decode("ascii"))
    except (OSError, ValueError) as error:  # SSLError is an OSError; the files were good a moment ago
        raise ConfigError(
            "tls", [f"{certificate}, {key} or the authority changed while they were read: {error}"]
        ) from error
    return context


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority's key has signed the certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def revocation_lists(data: bytes) -> list[x509.CertificateRevocationList]:
    """The revocation lists in a PEM file, one for each authority; ValueError if one cannot be read."""
    mark = b"-----BEGIN X509 CRL-----"
    return [x509.load_pem_x509_crl(mark + part) for part in data.split(mark)[1:]]


def _signed_list(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key = authority.public_key()
    return (
        isinstance(key, ec.EllipticCurvePublicKey) and crl.issuer == authority.subject and crl.is_signature_valid(key)
    )


def owner_of(certificate: x509.Certificate) -> Identity:
    """The name and the role in a certificate; ValueError if there is not exactly one of each."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = names.get_values_for_type(x509.DNSName)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    roles = [uri.removeprefix(ROLE_PREFIX) for uri in uris if uri.startswith(ROLE_PREFIX)]
    if len(hosts) != 1 or len(roles) != 1:
        raise ValueError(f"it must contain one name and one role of fedsim, it contains {hosts} and {roles}")
    return Identity(hosts[0], Role(roles[0]))


def _untrusted(serial: str, problem: str) -> Refused:
    return Refused("untrusted", f"its certificate {serial} {problem}", retry=True)
