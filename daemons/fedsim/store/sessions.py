"""Sessions of logged-in browsers."""

from __future__ import annotations

from sqlalchemy import delete, insert, select

from fedsim.store.connections import Database
from fedsim.store.records import LoginSession, User, UserState
from fedsim.store.rows import to_record
from fedsim.store.schema import sessions, users
from fedsim.store.users import is_unchanged


class SessionStore:
    """The table of sessions. Hashes are of 32 bytes, hexadecimal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, id_hash: str, user: User, csrf: str, *, now: float, expires_at: float) -> bool:
        """Create a session, and remove the expired sessions of all users.

        Returns:
            False, and no session is created, if the user's password has changed since `user` was read, or the user is
            not active.
        """
        values = {"id_hash": id_hash, "user_id": user.id, "csrf": csrf, "created_at": now, "expires_at": expires_at}
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
            if unchanged := is_unchanged(connection, user):
                connection.execute(insert(sessions).values(values))
            return unchanged

    def get(self, id_hash: str, now: float) -> LoginSession | None:
        """The session; None if it is unknown or has expired, or its user is not active."""
        query = (
            select(users, sessions.c.csrf, sessions.c.created_at.label("began_at"), sessions.c.expires_at)
            .join_from(sessions, users)
            .where(sessions.c.id_hash == id_hash, sessions.c.expires_at > now, users.c.state == UserState.ACTIVE)
        )
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            return None
        return LoginSession(to_record(User, row), row["csrf"], row["began_at"], row["expires_at"])

    def delete(self, id_hash: str) -> None:
        """End a session."""
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.id_hash == id_hash))
