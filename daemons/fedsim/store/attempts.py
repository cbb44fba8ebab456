"""Counted attempts (log-ins, registrations), which the web limits."""

from __future__ import annotations

import hashlib

from sqlalchemy import delete, func, insert, select

from fedsim.store.connections import Database
from fedsim.store.schema import attempts


def _key_hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class AttemptStore:
    """The table of attempts. Keys (names, addresses) are stored only as hashes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, key: str, *, now: float, until: float) -> None:
        """Record an attempt that counts until `until`, and remove the attempts, of any key, that no longer count."""
        with self._database.writing() as connection:
            connection.execute(delete(attempts).where(attempts.c.until <= now))
            connection.execute(insert(attempts).values(key_hash=_key_hash(key), until=until))

    def count(self, key: str, now: float) -> int:
        """How many attempts under this key still count."""
        query = select(func.count()).where(attempts.c.key_hash == _key_hash(key), attempts.c.until > now)
        with self._database.reading() as connection:
            return connection.scalar(query) or 0

    def clear(self, key: str) -> None:
        """Delete the attempts under this key."""
        with self._database.writing() as connection:
            connection.execute(delete(attempts).where(attempts.c.key_hash == _key_hash(key)))
