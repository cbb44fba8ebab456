"""Passwords as argon2id, which is meant to cost memory and processor: so only few are hashed at once.

Two at a time bound the memory (64 MiB each, RFC 9106's second recommendation), and few in line bound how many of the
web's threads can be kept busy by people who log in or register: the others are told to come again.
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
AT_ONCE = 2
IN_LINE = 4  # those at work among them
RETRY_SECONDS = 2

_WORKING = threading.BoundedSemaphore(AT_ONCE)
_LINE = threading.BoundedSemaphore(IN_LINE)
_HASHER = PasswordHasher()


@contextmanager
def _a_turn() -> Iterator[None]:
    if not _LINE.acquire(blocking=False):
        raise Fault(
            503, tr("Too many people log in or register just now. Try again in a moment."), retry_after=RETRY_SECONDS
        )
    try:
        with _WORKING:
            yield
    finally:
        _LINE.release()


def hash_password(password: str) -> str:
    """What is stored of a password.

    Raises:
        Fault: 503, too many are hashed just now.
    """
    with _a_turn():
        return _HASHER.hash(password)


def is_right(password_hash: str | None, password: str) -> bool:
    """Whether this is the password; without a hash, the same work is done for nothing and the answer is no.

    Raises:
        Fault: 503, too many are hashed just now.
    """
    with _a_turn():
        try:
            # One byte too many is enough to be wrong: nobody hashes megabytes here.
            right = _HASHER.verify(password_hash or _dummy_hash(), password[: MAX_BYTES + 1])
        except (VerifyMismatchError, InvalidHashError):
            return False
    return bool(right) and password_hash is not None


def is_outdated(password_hash: str) -> bool:
    """Whether it was made with other parameters than today's."""
    return _HASHER.check_needs_rehash(password_hash)


def problem_of(password: str) -> Text | None:
    """Why this cannot be a password; None if it can."""
    if len(password) < MIN_CHARACTERS:
        return tr("must have at least %(limit)s characters", limit=MIN_CHARACTERS)
    if len(password.encode()) > MAX_BYTES:
        return tr("must have at most %(limit)s bytes", limit=MAX_BYTES)
    return None


@cache
def _dummy_hash() -> str:
    """Verified for names that do not exist, so that the time of an answer tells nothing."""
    return _HASHER.hash(secrets.token_hex(16))
