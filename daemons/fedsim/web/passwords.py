"""Password hashing with argon2id, which is expensive by design, so concurrency is limited.

Two hashes at a time bound the memory (64 MiB each, RFC 9106's second recommendation). A short queue bounds how many of
the web's threads log-ins and registrations can occupy; further ones are asked to try again.
"""

from __future__ import annotations

import secrets
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError

from fedsim.web.errors import Fault
from fedsim.web.i18n import Text, tr

MIN_CHARACTERS = 8
MAX_BYTES = 1024
_JUDGED_CHARACTERS = 72  # what follows makes a password only stronger, and judging it slow
_LEAST_SCORE = 2  # of 4, see zxcvbn
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
        return _HASHER.hash(normalised(password))


def normalised(password: str) -> str:
    """The form that is hashed. Systems type one letter as different characters; names are normalised alike."""
    return unicodedata.normalize("NFKC", password)


def matching_form(password_hash: str | None, password: str) -> str | None:
    """The form of the password that the hash is of; None if it is wrong, or without a hash, after the same work.

    Versions before 0.2 hashed the form that was typed when the password was set.

    Raises:
        Fault: 503 if too many are being hashed.
    """
    with _hashing_slot():
        # A password beyond the limit is wrong; it is cut so that megabytes are never hashed.
        cut = password[: MAX_BYTES + 1]
        for form in dict.fromkeys(
            (normalised(cut), cut, *(unicodedata.normalize(form, cut) for form in ("NFC", "NFD")))
        ):
            with suppress(VerifyMismatchError, InvalidHashError):
                _HASHER.verify(password_hash or _dummy_hash(), form)
                return form if password_hash is not None else None
    return None


def is_right(password_hash: str | None, password: str) -> bool:
    """Whether the password is right, see `matching_form`."""
    return matching_form(password_hash, password) is not None


def is_outdated(password_hash: str, form: str) -> bool:
    """Whether it was hashed with other parameters than the current ones, or in another form than the normalised one."""
    return form != normalised(form) or _HASHER.check_needs_rehash(password_hash)


def password_problem(password: str, name: str = "") -> Text | None:
    """Why a password is not acceptable for the user of this name; None if it is."""
    password = normalised(password)
    if len(password) < MIN_CHARACTERS:
        return tr("must have at least %(limit)s characters", limit=MIN_CHARACTERS)
    if len(password.encode()) > MAX_BYTES:
        return tr("must have at most %(limit)s bytes", limit=MAX_BYTES)
    if _is_easily_guessed(password, name):
        return tr("is easy to guess: choose other words, for example a whole sentence")
    return None


def _is_easily_guessed(password: str, name: str) -> bool:
    """Whether fewer than a million guesses find it: common passwords, names, dates, rows of keys, repetitions."""
    from zxcvbn import zxcvbn  # noqa: PLC0415 - its lists of words take a tenth of a second that few requests need

    judged = password[:_JUDGED_CHARACTERS]
    words = [name, "".join(filter(str.isalnum, name)), "fedsim"]
    # Marks between easy words hide them from zxcvbn, not from people.
    forms = {judged, *(form for form in ["".join(filter(str.isalnum, judged))] if len(form) >= MIN_CHARACTERS)}
    return any(int(zxcvbn(form, user_inputs=words)["score"]) < _LEAST_SCORE for form in forms)


@cache
def _dummy_hash() -> str:
    """Verified for unknown names, so that the response time does not reveal whether a name exists."""
    return _HASHER.hash(secrets.token_hex(16))
