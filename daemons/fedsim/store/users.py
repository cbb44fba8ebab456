"""Users: names, roles, states and password hashes."""

from __future__ import annotations

import unicodedata
from typing import Any

from sqlalchemy import Connection, Select, delete, exc, insert, or_, select, update

from fedsim.errors import BadInput
from fedsim.store.connections import Database
from fedsim.store.records import User, UserRole, UserState
from fedsim.store.rows import to_record
from fedsim.store.schema import sessions, tokens, users

NAME_LENGTH = 64


def _name_key(name: str) -> str:
    """The key by which names are compared: regardless of case and width (Unicode's NFKC, casefold)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).strip()


def is_unchanged(connection: Connection, user: User) -> bool:
    """Whether the user is active and has the same password; the row is locked until the transaction ends."""
    query = select(users.c.password_hash, users.c.state).where(users.c.id == user.id).with_for_update()
    row = connection.execute(query).one_or_none()
    return row is not None and (row.password_hash, row.state) == (user.password_hash, UserState.ACTIVE)


def _revoke(connection: Connection, user_id: int) -> None:
    """Revoke all sessions and tokens of the user, in the transaction that requires it."""
    connection.execute(delete(sessions).where(sessions.c.user_id == user_id))
    connection.execute(delete(tokens).where(tokens.c.user_id == user_id))


class UserStore:
    """The table of users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        password_hash: str,
        *,
        role: UserRole,
        state: UserState,
        language: str,
        now: float,
        openid_key: str | None = None,
        must_change_password: bool = False,
    ) -> User:
        """Create a user.

        Raises:
            BadInput: the name (compared without case) is taken, empty or longer than 64 characters.
        """
        key = _name_key(name)
        if not key or len(name) > NAME_LENGTH:
            raise BadInput(f"A user's name has 1 to {NAME_LENGTH} characters; this one has {len(name)}")
        values = {
            "name": name,
            "name_key": key,
            "password_hash": password_hash,
            "must_change_password": must_change_password,
            "role": role,
            "state": state,
            "language": language,
            "created_at": now,
            "openid_key": openid_key,
        }
        with self._database.writing() as connection:
            try:
                connection.execute(insert(users).values(values))
            except exc.IntegrityError as error:
                raise BadInput(f"The name {name} is taken: choose another") from error
            return to_record(User, connection.execute(select(users).where(users.c.name_key == key)).mappings().one())

    def get(self, user_id: int) -> User | None:
        """The user with this id."""
        return self._one(select(users).where(users.c.id == user_id))

    def by_name(self, name: str) -> User | None:
        """The user with this name, compared without case."""
        return self._one(select(users).where(users.c.name_key == _name_key(name)))

    def by_openid(self, openid_key: str) -> User | None:
        """The user whom an OpenID Connect provider has identified."""
        return self._one(select(users).where(users.c.openid_key == openid_key))

    def _one(self, query: Select[Any]) -> User | None:
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else to_record(User, row)

    def all(self) -> list[User]:
        """All users, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(select(users).order_by(users.c.name_key)).mappings()
            return [to_record(User, row) for row in rows]

    def set_state(self, user_id: int, state: UserState) -> None:
        """Set a user's state. Deactivating a user revokes all their sessions and tokens."""
        with self._database.writing() as connection:
            connection.execute(update(users).where(users.c.id == user_id).values(state=state))
            if state is not UserState.ACTIVE:
                _revoke(connection, user_id)

    def set_role(self, user_id: int, role: UserRole) -> None:
        """Set the role of a user."""
        with self._database.writing() as connection:
            connection.execute(update(users).where(users.c.id == user_id).values(role=role))

    def set_password_hash(self, user_id: int, password_hash: str, *, must_change: bool = False) -> None:
        """Set a new password; revokes all the user's sessions and tokens."""
        values = {"password_hash": password_hash, "must_change_password": must_change}
        with self._database.writing() as connection:
            connection.execute(update(users).where(users.c.id == user_id).values(values))
            _revoke(connection, user_id)

    def renew_password_hash(self, user_id: int, old_hash: str, new_hash: str) -> None:
        """Replace the hash of the same password by a stronger one; revokes nothing.

        Does nothing if the password has been changed since `old_hash` was read.
        """
        same = update(users).where(users.c.id == user_id, users.c.password_hash == old_hash)
        with self._database.writing() as connection:
            connection.execute(same.values(password_hash=new_hash))

    def set_totp(self, user_id: int, secret: str | None) -> None:
        """Set the secret of the second factor, or remove it."""
        with self._database.writing() as connection:
            values = {"totp_secret": secret, "totp_step": None}
            connection.execute(update(users).where(users.c.id == user_id).values(values))

    def use_totp_step(self, user_id: int, step: int) -> bool:
        """Record that the code of a time step was used; False if it, or a later one, was used before."""
        unused = or_(users.c.totp_step.is_(None), users.c.totp_step < step)
        with self._database.writing() as connection:
            statement = update(users).where(users.c.id == user_id, unused).values(totp_step=step)
            return connection.execute(statement).rowcount == 1

    def set_language(self, user_id: int, language: str) -> None:
        """Set the language of the user."""
        with self._database.writing() as connection:
            connection.execute(update(users).where(users.c.id == user_id).values(language=language))
