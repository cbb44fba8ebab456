"""Bearer tokens of the JSON API."""

from __future__ import annotations

from sqlalchemy import delete, insert, or_, select, update

from fedsim.store.connections import Database
from fedsim.store.records import Token, User, UserState
from fedsim.store.rows import to_record
from fedsim.store.schema import tokens, users
from fedsim.store.users import is_unchanged

# The precision of a token's time of use; a finer one would make every request of the API a write.
TOKEN_USE_SECONDS = 60


class TokenStore:
    """The table of tokens. Hashes are of 32 bytes, hexadecimal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, user: User, label: str, token_hash: str, hint: str, now: float, *, expires_at: float | None = None
    ) -> Token | None:
        """Create a token; None, as in `SessionStore.create`, if the user has changed or is not active."""
        values = {
            "user_id": user.id,
            "label": label,
            "token_hash": token_hash,
            "hint": hint,
            "created_at": now,
            "expires_at": expires_at,
        }
        with self._database.writing() as connection:
            if not is_unchanged(connection, user):
                return None
            connection.execute(insert(tokens).values(values))
            made = select(tokens).where(tokens.c.token_hash == token_hash)
            return to_record(Token, connection.execute(made).mappings().one())

    def of_user(self, user_id: int) -> list[Token]:
        """The user's tokens, oldest first."""
        query = select(tokens).where(tokens.c.user_id == user_id).order_by(tokens.c.id)
        with self._database.reading() as connection:
            return [to_record(Token, row) for row in connection.execute(query).mappings()]

    def delete(self, user_id: int, token_id: int) -> bool:
        """Delete a token of this user; False if the user has no such token."""
        with self._database.writing() as connection:
            statement = delete(tokens).where(tokens.c.id == token_id, tokens.c.user_id == user_id)
            return connection.execute(statement).rowcount == 1

    def owner(self, token_hash: str, now: float) -> User | None:
        """The active user who owns the token; records the time of use, to the minute. None if it has expired."""
        query = (
            select(users, tokens.c.used_at)
            .join_from(tokens, users)
            .where(tokens.c.token_hash == token_hash, users.c.state == UserState.ACTIVE)
            .where(or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now))
        )
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            return None
        if row["used_at"] is None or row["used_at"] <= now - TOKEN_USE_SECONDS:
            with self._database.writing() as connection:
                connection.execute(update(tokens).where(tokens.c.token_hash == token_hash).values(used_at=now))
        return to_record(User, row)
