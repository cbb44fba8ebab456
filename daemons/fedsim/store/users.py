"""Who may log in: users, their sessions and tokens, and attempts that are counted so that nobody goes on guessing."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any

from sqlalchemy import Connection, Select, delete, exc, func, insert, select, update

from fedsim.errors import BadInput
from fedsim.store.engine import Database
from fedsim.store.interface import Role, Session, Token, User, UserState
from fedsim.store.schema import attempts, sessions, tokens, users

NAME_LENGTH = 64
# How exact a token's time of use is; finer would make every question of the API a write.
TOKEN_USE_SECONDS = 60


def _name_key(name: str) -> str:
    """What makes two names the same: neither case nor width counts (Unicode's NFKC, casefold)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).strip()


def _key_hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _user(row: Any) -> User:
    return User(
        id=row.id,
        name=row.name,
        password_hash=row.password_hash,
        role=Role(row.role),
        state=UserState(row.state),
        language=row.language,
        created_at=row.created_at,
    )


def _token(row: Any) -> Token:
    return Token(
        id=row.id,
        user_id=row.user_id,
        label=row.label,
        hint=row.hint,
        created_at=row.created_at,
        used_at=row.used_at,
    )


def _is_still(connection: Connection, user: User) -> bool:
    """Whether the user is active and has the same password; both stay so until the transaction ends."""
    query = select(users.c.password_hash, users.c.state).where(users.c.id == user.id).with_for_update()
    row = connection.execute(query).one_or_none()
    return row is not None and (row.password_hash, row.state) == (user.password_hash, UserState.ACTIVE)


def _shut_out(connection: Connection, user_id: int) -> None:
    """End every session and token of the user, in the transaction that gives the reason."""
    connection.execute(delete(sessions).where(sessions.c.user_id == user_id))
    connection.execute(delete(tokens).where(tokens.c.user_id == user_id))


class Users(Database):
    """The questions about users, sessions, tokens and counted attempts."""

    def create_user(
        self, name: str, password_hash: str, *, role: Role, state: UserState, language: str, now: float
    ) -> User:
        """A new user; `BadInput` if the name is taken (case does not count), empty or too long."""
        key = _name_key(name)
        if not key or len(name) > NAME_LENGTH:
            raise BadInput(f"A user's name has 1 to {NAME_LENGTH} characters; this one has {len(name)}")
        row = {
            "name": name,
            "name_key": key,
            "password_hash": password_hash,
            "role": role,
            "state": state,
            "language": language,
            "created_at": now,
        }
        with self.writing() as connection:
            try:
                connection.execute(insert(users).values(row))
            except exc.IntegrityError as error:
                raise BadInput(f"The name {name} is taken: choose another") from error
            return _user(connection.execute(select(users).where(users.c.name_key == key)).one())

    def user(self, user_id: int) -> User | None:
        """The user with this id."""
        return self._one_user(select(users).where(users.c.id == user_id))

    def user_by_name(self, name: str) -> User | None:
        """The user with this name; case does not count."""
        return self._one_user(select(users).where(users.c.name_key == _name_key(name)))

    def _one_user(self, query: Select[Any]) -> User | None:
        with self.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _user(row)

    def users(self) -> list[User]:
        """All users, by name."""
        with self.reading() as connection:
            return [_user(row) for row in connection.execute(select(users).order_by(users.c.name_key))]

    def set_user_state(self, user_id: int, state: UserState) -> None:
        """Whoever is not active loses every session and token, for good."""
        with self.writing() as connection:
            connection.execute(update(users).where(users.c.id == user_id).values(state=state))
            if state is not UserState.ACTIVE:
                _shut_out(connection, user_id)

    def set_user_role(self, user_id: int, role: Role) -> None:
        """What the user may do from now on."""
        with self.writing() as connection:
            connection.execute(update(users).where(users.c.id == user_id).values(role=role))

    def set_password_hash(self, user_id: int, password_hash: str) -> None:
        """A new password; sessions and tokens that were made with the old one end with it."""
        with self.writing() as connection:
            connection.execute(update(users).where(users.c.id == user_id).values(password_hash=password_hash))
            _shut_out(connection, user_id)

    def renew_password_hash(self, user_id: int, old_hash: str, new_hash: str) -> None:
        """The same password under a better hash: nothing ends, and a password that is new by now stays."""
        same = update(users).where(users.c.id == user_id, users.c.password_hash == old_hash)
        with self.writing() as connection:
            connection.execute(same.values(password_hash=new_hash))

    def set_language(self, user_id: int, language: str) -> None:
        """The language in which the user reads pages."""
        with self.writing() as connection:
            connection.execute(update(users).where(users.c.id == user_id).values(language=language))

    def create_session(self, id_hash: str, user: User, csrf: str, *, now: float, expires_at: float) -> bool:
        """A browser has logged in; sessions that expired, anybody's, are removed on the way."""
        row = {"id_hash": id_hash, "user_id": user.id, "csrf": csrf, "created_at": now, "expires_at": expires_at}
        with self.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
            if same := _is_still(connection, user):
                connection.execute(insert(sessions).values(row))
            return same

    def session(self, id_hash: str, now: float) -> Session | None:
        """The session, if it has not expired and its user is active."""
        query = (
            select(users, sessions.c.csrf, sessions.c.created_at.label("began_at"), sessions.c.expires_at)
            .join_from(sessions, users)
            .where(sessions.c.id_hash == id_hash, sessions.c.expires_at > now, users.c.state == UserState.ACTIVE)
        )
        with self.reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        return Session(user=_user(row), csrf=row.csrf, created_at=row.began_at, expires_at=row.expires_at)

    def end_session(self, id_hash: str) -> None:
        """The browser has logged out."""
        with self.writing() as connection:
            connection.execute(delete(sessions).where(sessions.c.id_hash == id_hash))

    def create_token(self, user: User, label: str, token_hash: str, hint: str, now: float) -> Token | None:
        """A new bearer token of this user."""
        row = {"user_id": user.id, "label": label, "token_hash": token_hash, "hint": hint, "created_at": now}
        with self.writing() as connection:
            if not _is_still(connection, user):
                return None
            connection.execute(insert(tokens).values(row))
            return _token(connection.execute(select(tokens).where(tokens.c.token_hash == token_hash)).one())

    def tokens(self, user_id: int) -> list[Token]:
        """The user's tokens, oldest first."""
        query = select(tokens).where(tokens.c.user_id == user_id).order_by(tokens.c.id)
        with self.reading() as connection:
            return [_token(row) for row in connection.execute(query)]

    def delete_token(self, user_id: int, token_id: int) -> bool:
        """Whether this user had such a token; it is gone now."""
        with self.writing() as connection:
            statement = delete(tokens).where(tokens.c.id == token_id, tokens.c.user_id == user_id)
            return connection.execute(statement).rowcount == 1

    def user_by_token(self, token_hash: str, now: float) -> User | None:
        """The active owner; the time of use is noted, to the minute."""
        query = (
            select(users, tokens.c.used_at)
            .join_from(tokens, users)
            .where(tokens.c.token_hash == token_hash, users.c.state == UserState.ACTIVE)
        )
        with self.reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        if row.used_at is None or row.used_at <= now - TOKEN_USE_SECONDS:
            with self.writing() as connection:
                connection.execute(update(tokens).where(tokens.c.token_hash == token_hash).values(used_at=now))
        return _user(row)

    def record_attempt(self, key: str, *, now: float, until: float) -> None:
        """Something that is counted was tried under this key; of the key only a hash is kept, and none beyond `until`.

        What nobody counts any more, under any key, is removed on the way.
        """
        with self.writing() as connection:
            connection.execute(delete(attempts).where(attempts.c.until <= now))
            connection.execute(insert(attempts).values(key_hash=_key_hash(key), until=until))

    def attempts(self, key: str, now: float) -> int:
        """How many attempts under this key still count."""
        query = select(func.count()).where(attempts.c.key_hash == _key_hash(key), attempts.c.until > now)
        with self.reading() as connection:
            return connection.scalar(query) or 0

    def clear_attempts(self, key: str) -> None:
        """Those under this key count no more."""
        with self.writing() as connection:
            connection.execute(delete(attempts).where(attempts.c.key_hash == _key_hash(key)))
