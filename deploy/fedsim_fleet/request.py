"""Creates a host's private key, which never leaves the host, and the signing request for it."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedsim.errors import BadInput, Unavailable
from fedsim.spool.durable import sync_folder, write_all
from fedsim_fleet.certificates import make_request, new_key, pem


def request_for(path: Path, name: str) -> tuple[bytes, bool]:
    """Return the signing request (PEM) for the key at `path`, and whether this call created the key.

    An existing key is used and never overwritten. For a rotation, use another path, and move key and certificate into
    place together.

    Raises:
        BadInput: the file at `path` is not a supported key.
        Unavailable: the key cannot be read or written.
    """
    try:
        made = _make_key(path)
        private = path.read_bytes()
    except OSError as error:
        what_to_do = "create its folder first" if isinstance(error, FileNotFoundError) else "run this as root"
        raise Unavailable(f"the key {path} cannot be created or read: {error.strerror}; {what_to_do}") from error
    try:
        key = serialization.load_pem_private_key(private, password=None)
    except (ValueError, TypeError) as error:
        raise BadInput(f"{path} is not an unencrypted private key in PEM: {error}; use another path") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadInput(f"{path} is not an ECDSA key; use another path")
    return pem(make_request(key, name)), made


def _make_key(path: Path) -> bool:
    """Create a key unless one exists, readable by its owner only from its first byte on."""
    key = new_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            write_all(file, key)
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename it never replaces
        except FileExistsError:
            return False
    finally:
        temporary.unlink()
    sync_folder(path.parent)
    return True
