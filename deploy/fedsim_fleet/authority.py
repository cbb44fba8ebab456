"""The lab's certificate authority: a folder with its certificate, its encrypted key, and an index of its certificates.

| file | content |
| --- | --- |
| `ca.crt` | the authority's certificate, for every host |
| `ca.key` | its private key, encrypted with the passphrase |
| `index.json` | every certificate that it issued, and the time of revocation if it was revoked |
| `crl.pem` | the certificate revocation list, for every host |

Every change is made under a lock, and each file is replaced atomically and durably, the index first. So neither
concurrent processes nor a power failure lose a certificate that was returned to a caller.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from fedsim.config.fields import Name
from fedsim.errors import BadInput, NotThere
from fedsim.spool.durable import make_folder, replacing, write_all, write_bytes
from fedsim_fleet.certificates import (
    HTTPS,
    Use,
    make_authority,
    make_certificate,
    make_revocation_list,
    new_key,
    pem,
    permitted_names,
    read_request,
)

AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 365
MIN_PASSPHRASE_BYTES: Final = 16
_PUBLIC: Final = 0o644
_NAME: Final[TypeAdapter[str]] = TypeAdapter(Name)

Passphrase = Callable[[], bytes]
Clock = Callable[[], datetime]


def _now() -> datetime:
    return datetime.now(UTC)


class Issued(BaseModel):
    """One certificate that the authority issued."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    serial: str
    name: str
    role: Use
    not_before: datetime
    not_after: datetime
    key: str
    certificate: str
    revoked: datetime | None = None

    @classmethod
    def of(cls, certificate: x509.Certificate, name: str, role: Use) -> Self:
        """The index entry of a certificate."""
        return cls(
            serial=f"{certificate.serial_number:x}",
            name=name,
            role=role,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            key=_fingerprint(certificate.public_key()),
            certificate=pem(certificate).decode(),
        )

    def days_left(self, now: datetime) -> int:
        """Days until it expires, rounded down; negative after that."""
        return (self.not_after - now).days

    def state(self, now: datetime) -> str:
        """`valid`, `expired` or `revoked`."""
        return "revoked" if self.revoked else "valid" if now < self.not_after else "expired"


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: int = 1
    crl_number: int = 0
    issued: list[Issued] = []


class Authority:
    """A CA in a folder.

    Args:
        folder: contains the authority; `make` creates one.
        passphrase: called when something is to be signed.
        clock: returns the time with its zone.

    Raises:
        NotThere: there is no authority in the folder.
        BadInput: its files cannot be parsed.
    """

    def __init__(self, folder: Path, passphrase: Passphrase, *, clock: Clock = _now) -> None:
        self.folder = folder
        self._passphrase = passphrase
        self._clock = clock
        try:
            self.certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        except FileNotFoundError as error:
            raise NotThere(f"there is no authority in {folder}; create one with: fedsim-ca init") from error
        except ValueError as error:
            raise BadInput(f"{folder / 'ca.crt'} is not a certificate: {error}; restore it from a backup") from error

    @classmethod
    def make(
        cls,
        folder: Path,
        passphrase: Passphrase,
        *,
        name: str,
        permitted: Sequence[str] = (),
        days: int = AUTHORITY_DAYS,
        clock: Clock = _now,
    ) -> Self:
        """Create an authority, with an empty revocation list; with `permitted` names it signs for web pages only.

        Raises:
            BadInput: the folder already contains one, or the passphrase is too short.
        """
        secret = passphrase()
        if len(secret) < MIN_PASSPHRASE_BYTES:
            advice = "use a random one, for example from: head -c 24 /dev/urandom | base64"
            raise BadInput(f"the passphrase has {len(secret)} characters, it needs {MIN_PASSPHRASE_BYTES}; {advice}")
        make_folder(folder)
        with _locked(folder):
            if any((folder / name).exists() for name in ("ca.crt", "ca.key")):
                raise BadInput(f"{folder} already contains an authority; nothing was changed")
            key = new_key()
            certificate = make_authority(key, name, clock(), days, permitted)
            encryption = serialization.BestAvailableEncryption(secret)
            private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
            write_bytes(folder / "ca.key", private)
            write_bytes(folder / "index.json", _Index().model_dump_json(indent=1).encode())
            _publish(folder / "ca.crt", pem(certificate))
        authority = cls(folder, passphrase, clock=clock)
        authority.revocation_list()
        return authority

    # -- changes

    def sign(self, request: bytes, name: str, role: Use, *, days: int = CERTIFICATE_DAYS) -> Issued:
        """Issue a certificate in the name of `name` for the key of a signing request; a name in the request is ignored.

        Raises:
            BadInput: the request or the name is invalid, its key belongs to another name or was revoked, or the
                authority does not sign for this role.
        """
        key = read_request(request)
        try:
            _NAME.validate_python(name)
        except ValidationError as error:
            raise BadInput(f"{name!r} is not a valid host name: use at most 64 letters, digits, . _ or -") from error
        with self._changing() as index:
            return self._issue(index, key, name, role, days)

    def renew(self, name: str, *, days: int = CERTIFICATE_DAYS) -> Issued:
        """Issue a new certificate for the current key of `name`; the old one stays valid until it expires.

        Raises:
            NotThere: `name` has no valid certificate.
        """
        with self._changing() as index:
            old = self._find(index, name, only_valid=True)[-1]
            key = x509.load_pem_x509_certificate(old.certificate.encode()).public_key()
            assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - the authority certifies no other
            return self._issue(index, key, old.name, old.role, days)

    def revoke(self, what: str, *, keep_newest: bool = False) -> list[Issued]:
        """Revoke a certificate by its serial number, or all valid ones of a name, and sign a new revocation list.

        Args:
            what: a name or a serial number.
            keep_newest: keep the newest certificate of the name, after a rotation.

        Returns:
            The certificates that this call revoked; empty if all had been revoked before.

        Raises:
            NotThere: no certificate has this name or number.
        """
        now = self._clock()
        with self._changing() as index:
            found = [item for item in self._find(index, what) if not item.revoked]
            if keep_newest:
                del found[-1:]
            revoked = {item.serial: item.model_copy(update={"revoked": now}) for item in found}
            index.issued = [revoked.get(item.serial, item) for item in index.issued]
        self.revocation_list()
        return list(revoked.values())

    def revocation_list(self) -> bytes:
        """Return the CRL (PEM); signs a new one if `crl.pem` does not match the index."""
        path = self.folder / "crl.pem"
        with _locked(self.folder):
            index = self._read_index()
            now = self._clock()
            # Expired certificates are rejected anyway, so the list does not grow without bound.
            revoked = {int(item.serial, 16): item.revoked for item in index.issued if item.revoked}
            expired = {int(item.serial, 16) for item in index.issued if item.not_after <= now}
            wanted = {serial: at for serial, at in revoked.items() if serial not in expired}
            there = path.read_bytes() if path.exists() else b""
            if there and {entry.serial_number for entry in x509.load_pem_x509_crl(there)} - expired == set(wanted):
                return there
            index.crl_number += 1
            self._write_index(index)
            crl = make_revocation_list(self.certificate, self._key(), wanted.items(), index.crl_number, now)
            _publish(path, pem(crl))
            return pem(crl)

    # -- queries

    def issued(self, what: str | None = None) -> list[Issued]:
        """All certificates, or those with a name or serial number; the oldest first.

        Raises:
            NotThere: no certificate has this name or number.
        """
        index = self._read_index()
        return index.issued if what is None else self._find(index, what)

    @property
    def permitted(self) -> tuple[str, ...]:
        """The names of the web to which it is constrained; empty if it signs for hosts."""
        return permitted_names(self.certificate)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def days_left(self) -> int:
        """Days until the authority's own certificate expires, rounded down."""
        return (self.certificate.not_valid_after_utc - self._clock()).days

    def check_key(self) -> None:
        """Raise `BadInput` or `NotThere` if the authority's key cannot be opened to sign."""
        self._key()

    # -- internals

    def _issue(self, index: _Index, key: ec.EllipticCurvePublicKey, name: str, role: Use, days: int) -> Issued:
        now = self._clock()
        permitted = self.permitted
        if (role == HTTPS) != bool(permitted) or (permitted and name not in permitted):
            what = f"only web pages ({HTTPS}) of {', '.join(permitted)}" if permitted else "hosts, and no web pages"
            raise BadInput(f"the authority in {self.folder} certifies {what}; {role} {name} needs another one")
        if now >= self.certificate.not_valid_after_utc:
            raise BadInput(f"the authority in {self.folder} has expired; create a new one elsewhere: fedsim-ca init")
        fingerprint = _fingerprint(key)
        for item in index.issued:
            if item.key == fingerprint and item.name != name:
                raise BadInput(f"this key already belongs to {item.name}; create a separate key for {name}")
            if item.key == fingerprint and item.revoked:
                raise BadInput(f"this key of {name} was revoked; create a new one")
        certificate = make_certificate(self.certificate, self._key(), key, name, role, now, days)
        issued = Issued.of(certificate, name, role)
        index.issued.append(issued)
        return issued

    def _find(self, index: _Index, what: str, *, only_valid: bool = False) -> list[Issued]:
        now = self._clock()
        number = what.lower().replace(":", "").lstrip("0")
        found = [item for item in index.issued if item.name == what or item.serial == number]
        if only_valid:
            found = [item for item in found if item.state(now) == "valid"]
        if not found:
            known = ", ".join(sorted({item.name for item in index.issued})) or "none yet"
            raise NotThere(f"{what} has no {'valid ' if only_valid else ''}certificate; names with one: {known}")
        return found

    def _key(self) -> ec.EllipticCurvePrivateKey:
        path = self.folder / "ca.key"
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), self._passphrase())
        except OSError as error:
            raise NotThere(f"{path} cannot be read: {error.strerror}; restore it from a backup") from error
        except (ValueError, TypeError) as error:
            raise BadInput(f"{path} cannot be opened: the passphrase is wrong, or the file is damaged") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self.certificate.public_key():
            raise BadInput(f"{path} does not match ca.crt; restore both from the same backup")
        return key

    @contextmanager
    def _changing(self) -> Iterator[_Index]:
        """Provide the index, and write it back if the block succeeds."""
        with _locked(self.folder):
            index = self._read_index()
            yield index
            self._write_index(index)

    def _read_index(self) -> _Index:
        path = self.folder / "index.json"
        try:
            return _Index.model_validate_json(path.read_bytes())
        except OSError as error:
            raise NotThere(f"{path} cannot be read: {error.strerror}; restore it from a backup") from error
        except ValidationError as error:
            raise BadInput(f"{path} cannot be parsed; restore it from a backup: {error}") from error

    def _write_index(self, index: _Index) -> None:
        write_bytes(self.folder / "index.json", index.model_dump_json(indent=1).encode())


def _fingerprint(key: object) -> str:
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - every door lets in only these
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def _publish(path: Path, data: bytes) -> None:
    """Durably write a world-readable file."""
    with replacing(path) as file:
        os.fchmod(file.fileno(), _PUBLIC)
        write_all(file, data)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder; the kernel releases it however the process ends."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
