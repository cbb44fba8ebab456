"""Users, sessions, tokens and counted attempts in the store, on SQLite and on MariaDB."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from store_support import (
    NOW,
    count,
    new_user,
)

from fedsim.errors import BadInput
from fedsim.store.records import (
    User,
    UserRole,
    UserState,
)
from fedsim.store.schema import attempts, sessions

if TYPE_CHECKING:
    from fedsim.store import Store


class TestUsers:
    def test_a_user_comes_back_as_it_was_made(self, store: Store) -> None:
        user = new_user(store, "Ada", role=UserRole.ADMIN, state=UserState.WAITING, language="zh")
        assert user == User(user.id, "Ada", "$argon2id$…", UserRole.ADMIN, UserState.WAITING, "zh", NOW)
        assert store.users.get(user.id) == user
        assert store.users.get(user.id + 1) is None

    @pytest.mark.parametrize(
        ("name", "same"),
        [
            ("Ada", "aDA"),
            ("Ärger", "ÄRGER"),
            ("straße", "STRASSE"),
            ("Ada", "Ａｄａ"),
            ("张伟", "张伟"),
            ("Ada", " ada "),
        ],
    )
    def test_neither_case_nor_width_makes_another_name(self, store: Store, name: str, same: str) -> None:
        user = new_user(store, name)
        assert store.users.by_name(same) == user
        with pytest.raises(BadInput, match="is taken"):
            new_user(store, same)
        assert len(store.users.all()) == 1

    @pytest.mark.parametrize("other", ["Adà", "Ad", "Ada2", "A\u0000da"])
    def test_other_names_are_other_users(self, store: Store, other: str) -> None:
        assert new_user(store, "Ada").id != new_user(store, other).id
        assert store.users.by_name("nobody") is None

    @pytest.mark.parametrize("name", ["", "  ", "x" * 65])
    def test_a_name_must_be_there_and_fit(self, store: Store, name: str) -> None:
        with pytest.raises(BadInput, match="1 to 64 characters"):
            new_user(store, name)

    def test_the_longest_name_fits_however_it_folds(self, store: Store) -> None:
        user = new_user(store, "ΐ" * 64)  # one character that folds into three
        assert store.users.by_name("ΐ" * 64) == user

    def test_users_come_by_name(self, store: Store) -> None:
        for name in ("carl", "Bob", "ada"):
            new_user(store, name)
        assert [user.name for user in store.users.all()] == ["ada", "Bob", "carl"]

    def test_role_language_and_password_change(self, store: Store) -> None:
        user = new_user(store)
        store.users.set_role(user.id, UserRole.ADMIN)
        store.users.set_language(user.id, "zh")
        store.users.set_password_hash(user.id, "other")
        assert store.users.get(user.id) == replace(user, role=UserRole.ADMIN, language="zh", password_hash="other")

    @pytest.mark.parametrize("state", [UserState.DISABLED, UserState.WAITING])
    def test_who_is_not_active_loses_sessions_and_tokens_for_good(self, store: Store, state: UserState) -> None:
        user, other = new_user(store), new_user(store, "Bob")
        for owner, letter in ((user, "a"), (other, "b")):
            store.sessions.create(letter * 64, owner, "csrf", now=NOW, expires_at=NOW + 10)
            store.tokens.create(owner, "laptop", letter * 64, "fs_a", NOW)
        store.users.set_state(user.id, state)
        assert store.sessions.get("a" * 64, NOW) is None
        assert store.tokens.owner("a" * 64, NOW) is None
        store.users.set_state(user.id, UserState.ACTIVE)
        assert store.sessions.get("a" * 64, NOW) is None
        assert store.tokens.owner("a" * 64, NOW) is None
        assert store.sessions.get("b" * 64, NOW) is not None
        assert store.tokens.owner("b" * 64, NOW) == other


class TestSessions:
    def test_a_session_brings_its_user(self, store: Store) -> None:
        user = new_user(store)
        store.sessions.create("a" * 64, user, "token", now=NOW + 5, expires_at=NOW + 10)
        session = store.sessions.get("a" * 64, NOW + 9)
        assert session is not None
        assert (session.user, session.csrf, session.created_at, session.expires_at) == (
            user,
            "token",
            NOW + 5,
            NOW + 10,
        )
        assert store.sessions.get("A" * 64, NOW + 9) is None

    def test_a_session_ends_at_its_time_or_by_logging_out(self, store: Store) -> None:
        user = new_user(store)
        store.sessions.create("a" * 64, user, "csrf", now=NOW, expires_at=NOW + 10)
        assert store.sessions.get("a" * 64, NOW + 10) is None
        store.sessions.delete("a" * 64)
        assert store.sessions.get("a" * 64, NOW) is None

    def test_a_new_password_ends_every_session_and_token_of_this_user(self, store: Store) -> None:
        user, other = new_user(store), new_user(store, "Bob")
        for owner, letter in ((user, "a"), (other, "b")):
            store.sessions.create(letter * 64, owner, "csrf", now=NOW, expires_at=NOW + 10)
            store.tokens.create(owner, "laptop", letter * 64, "fs_a", NOW)
        store.users.set_password_hash(user.id, "other")
        assert store.sessions.get("a" * 64, NOW) is None
        assert store.tokens.owner("a" * 64, NOW) is None
        assert store.sessions.get("b" * 64, NOW) is not None
        assert store.tokens.owner("b" * 64, NOW) == other

    def test_who_has_another_password_by_now_or_is_not_active_gets_no_session_and_no_token(self, store: Store) -> None:
        before = new_user(store)
        store.users.set_password_hash(before.id, "other")
        changed = replace(before, password_hash="other")
        for letter, user in (("a", before), ("b", replace(changed, id=changed.id + 1))):
            assert not store.sessions.create(letter * 64, user, "csrf", now=NOW, expires_at=NOW + 10)
            assert store.tokens.create(user, "laptop", letter * 64, "fs_a", NOW) is None
        store.users.set_state(changed.id, UserState.DISABLED)
        assert not store.sessions.create("c" * 64, changed, "csrf", now=NOW, expires_at=NOW + 10)
        store.users.set_state(changed.id, UserState.ACTIVE)
        assert store.sessions.create("d" * 64, changed, "csrf", now=NOW, expires_at=NOW + 10)
        assert [store.sessions.get(letter * 64, NOW) is None for letter in "abcd"] == [True, True, True, False]
        assert not store.tokens.of_user(changed.id)

    def test_a_better_hash_of_the_same_password_ends_nothing(self, store: Store) -> None:
        user = new_user(store)
        store.sessions.create("a" * 64, user, "csrf", now=NOW, expires_at=NOW + 10)
        store.tokens.create(user, "laptop", "b" * 64, "fs_b", NOW)
        store.users.renew_password_hash(user.id, user.password_hash, "better")
        store.users.renew_password_hash(user.id, user.password_hash, "too late")
        renewed = replace(user, password_hash="better")
        assert store.users.get(user.id) == renewed
        assert store.sessions.get("a" * 64, NOW) is not None
        assert store.tokens.owner("b" * 64, NOW) == renewed

    def test_expired_sessions_do_not_pile_up(self, store: Store) -> None:
        user = new_user(store)
        for place in range(5):
            store.sessions.create(f"{place}" * 64, user, "csrf", now=NOW + place, expires_at=NOW + place + 0.5)
        assert count(store, sessions) == 1


class TestTokens:
    def test_a_token_names_its_owner_and_notes_its_use(self, store: Store) -> None:
        user = new_user(store)
        token = store.tokens.create(user, "my laptop 💻", "a" * 64, "fs_abc", NOW)
        assert token is not None
        assert (token.user_id, token.label, token.hint, token.used_at) == (user.id, "my laptop 💻", "fs_abc", None)
        assert store.tokens.owner("a" * 64, NOW + 1) == user
        assert store.tokens.of_user(user.id) == [replace(token, used_at=NOW + 1)]
        assert store.tokens.owner("c" * 64, NOW) is None

    def test_use_is_noted_to_the_minute(self, store: Store) -> None:
        user = new_user(store)
        store.tokens.create(user, "laptop", "a" * 64, "fs_a", NOW)
        for later in (1, 60, 61, 62):
            assert store.tokens.owner("a" * 64, NOW + later) == user
        assert [token.used_at for token in store.tokens.of_user(user.id)] == [NOW + 61]

    def test_only_its_owner_deletes_a_token(self, store: Store) -> None:
        user, other = new_user(store), new_user(store, "Bob")
        token = store.tokens.create(user, "laptop", "a" * 64, "fs_a", NOW)
        assert token is not None
        assert not store.tokens.delete(other.id, token.id)
        assert store.tokens.delete(user.id, token.id)
        assert not store.tokens.delete(user.id, token.id)
        assert store.tokens.of_user(user.id) == []


class TestAttempts:
    def test_attempts_are_counted_by_key_each_until_its_time(self, store: Store) -> None:
        for until in (11.0, 12.0, 13.0):
            store.attempts.record("ada", now=1.0, until=until)
        store.attempts.record("bob", now=1.0, until=12.0)
        assert [store.attempts.count("ada", now) for now in (1.0, 11.0, 12.5, 13.0)] == [3, 2, 1, 0]
        store.attempts.clear("ada")
        assert store.attempts.count("ada", 1.0) == 0
        assert store.attempts.count("bob", 1.0) == 1

    def test_what_no_longer_counts_is_removed_under_any_key(self, store: Store) -> None:
        for place in range(10):
            store.attempts.record(f"10.0.0.{place}", now=float(place), until=place + 2.5)
        assert count(store, attempts) == 3

    def test_what_was_typed_is_not_kept(self, store: Store) -> None:
        typed = "correct horse battery staple \ud800" + "x" * 10_000
        store.attempts.record(typed, now=1.0, until=2.0)
        assert store.attempts.count(typed, 1.0) == 1
        with store.database.reading() as connection:
            assert "horse" not in str(connection.execute(select(attempts)).all())
