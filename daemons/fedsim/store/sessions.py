"""Sessions of logged-in browsers."""

from __future__ import annotations

from sqlalchemy import delete, func, insert, select, update

from fedsim.store.connections import Database
from fedsim.store.records import BrowserSession, LoginSession, User, UserState
from fedsim.store.rows import to_record
from fedsim.store.schema import sessions, users
from fedsim.store.users import is_unchanged

# The precision of a session's last use; a finer one would make every request a write.
SESSION_USE_SECONDS = 60


class SessionStore:
    """The table of sessions. Hashes are of 32 bytes, hexadecimal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        id_hash: str,
        user: User,
        csrf: str,
        *,
        now: float,
        expires_at: float,
        address: str | None = None,
        browser: str | None = None,
    ) -> bool:
        """Create a session, and remove the expired sessions of all users.

        Returns:
            False, and no session is created, if the user's password has changed since `user` was read, or the user is
            not active.
        """
        values = {
            "id_hash": id_hash,
            "user_id": user.id,
            "csrf": csrf,
            "created_at": now,
            "expires_at": expires_at,
            "used_at": now,
            "address": address,
            "browser": browser,
        }
        with self._database.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
            if unchanged := is_unchanged(connection, user):
                connection.execute(insert(sessions).values(values))
            return unchanged

    def get(
        self, id_hash: str, now: float, *, idle_seconds: float | None = None, counts_as_use: bool = True
    ) -> LoginSession | None:
        """The session; None if it is unknown, has expired or was idle for too long, or its user is not active.

        Args:
            id_hash: of the session.
            now: in seconds since the epoch.
            idle_seconds: a session that was not used for this long has ended; None: never for this reason.
            counts_as_use: whether this is a use, which is recorded to the minute.
        """
        last_used = func.coalesce(sessions.c.used_at, sessions.c.created_at)
        query = (
            select(users, sessions.c.csrf, sessions.c.created_at.label("began_at"), sessions.c.expires_at)
            .add_columns(last_used.label("last_used"))
            .join_from(sessions, users)
            .where(sessions.c.id_hash == id_hash, sessions.c.expires_at > now, users.c.state == UserState.ACTIVE)
        )
        if idle_seconds is not None:
            query = query.where(last_used > now - idle_seconds)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            return None
        if counts_as_use and row["last_used"] <= now - SESSION_USE_SECONDS:
            with self._database.writing() as connection:
                connection.execute(update(sessions).where(sessions.c.id_hash == id_hash).values(used_at=now))
        return LoginSession(to_record(User, row), row["csrf"], row["began_at"], row["expires_at"])

    def of_user(self, user_id: int, now: float) -> list[BrowserSession]:
        """The user's sessions that have not expired, the newest first."""
        query = (
            select(sessions)
            .where(sessions.c.user_id == user_id, sessions.c.expires_at > now)
            .order_by(sessions.c.created_at.desc())
        )
        with self._database.reading() as connection:
            return [to_record(BrowserSession, row) for row in connection.execute(query).mappings()]

    def delete(self, id_hash: str, *, user_id: int | None = None) -> bool:
        """End a session, of this user if one is given; False if there is none."""
        statement = delete(sessions).where(sessions.c.id_hash == id_hash)
        if user_id is not None:
            statement = statement.where(sessions.c.user_id == user_id)
        with self._database.writing() as connection:
            return connection.execute(statement).rowcount == 1
