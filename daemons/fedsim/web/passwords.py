"""Password hashing with argon2id, which is expensive by design, so concurrency is limited.

Two hashes at a time bound the memory (64 MiB each, RFC 9106's second recommendation). A short queue bounds how many of
the web's threads log-ins and registrations can occupy; further ones are asked to try again.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError

from fedsim.web.errors import Fault
from fedsim.web.i18n import Text, tr

MIN_CHARACTERS = 8
MAX_BYTES = 1024
MAX_HASHING = 2
MAX_WAITING = 4  # including those being hashed
RETRY_SECONDS = 2

_HASHING = threading.BoundedSemaphore(MAX_HASHING)
_QUEUE = threading.BoundedSemaphore(MAX_WAITING)
_HASHER = PasswordHasher()


@contextmanager
def _hashing_slot() -> Iterator[None]:
    if not _QUEUE.acquire(blocking=False):
        raise Fault(
            503, tr("Too many log-ins and registrations at the moment. Try again shortly."), retry_after=RETRY_SECONDS
        )
    try:
        with _HASHING:
            yield
    finally:
        _QUEUE.release()


def hash_password(password: str) -> str:
    """Hash a password for storage.

    Raises:
        Fault: 503 if too many are being hashed.
    """
    with _hashing_slot():
        return _HASHER.hash(password)


def is_right(password_hash: str | None, password: str) -> bool:
    """Verify a password. Without a hash the result is False, after the same amount of work.

    Raises:
        Fault: 503 if too many are being hashed.
    """
    with _hashing_slot():
        try:
            # A password beyond the limit is wrong; it is cut so that megabytes are never hashed.
            right = _HASHER.verify(password_hash or _dummy_hash(), password[: MAX_BYTES + 1])
        except (VerifyMismatchError, InvalidHashError):
            return False
    return bool(right) and password_hash is not None


def is_outdated(password_hash: str) -> bool:
    """Whether it was hashed with other parameters than the current ones."""
    return _HASHER.check_needs_rehash(password_hash)


def password_problem(password: str) -> Text | None:
    """Why a password is not acceptable; None if it is."""
    if len(password) < MIN_CHARACTERS:
        return tr("must have at least %(limit)s characters", limit=MIN_CHARACTERS)
    if len(password.encode()) > MAX_BYTES:
        return tr("must have at most %(limit)s bytes", limit=MAX_BYTES)
    return None


@cache
def _dummy_hash() -> str:
    """Verified for unknown names, so that the response time does not reveal whether a name exists."""
    return _HASHER.hash(secrets.token_hex(16))
