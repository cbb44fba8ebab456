"""Passwords: those that are tried first are refused, and a reset makes a strong one and leaves the second factor."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from fedsim.store import open_store
from fedsim.store.records import UserRole, UserState
from fedsim.web import accounts, passwords, second_factor

COMMON = [word for word in FREQUENCY_LISTS["passwords"] if len(word) >= passwords.MIN_CHARACTERS][:3000]


def test_the_most_common_passwords_are_refused() -> None:
    assert len(COMMON) == 3000
    # Every tenth: judging one takes two milliseconds.
    assert not [word for word in COMMON[::10] if passwords.password_problem(word) is None]


def test_a_hash_costs_what_rfc_9106_recommends() -> None:
    """Its second recommendation, for memory that is scarce: argon2id with 64 MiB, 3 passes and 4 lanes."""
    assert passwords.hash_password("correct horse battery").startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_a_reset_password_has_128_bits(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/fedsim.db")
    store.migrate()
    user = store.users.create("lin", "x", role=UserRole.USER, state=UserState.ACTIVE, language="", now=0)
    password = accounts.reset_password(store, user, by=user, now=1)
    assert len(base64.urlsafe_b64decode(password + "==")) == 16
    assert passwords.password_problem(password) is None
    store.close()


def test_a_reset_password_keeps_the_second_factor(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/fedsim.db")
    store.migrate()
    user = store.users.create("lin", "x", role=UserRole.USER, state=UserState.ACTIVE, language="", now=0)
    secret = second_factor.new_secret()
    store.users.set_totp(user.id, secret)
    accounts.reset_password(store, user, by=user, now=1)
    changed = store.users.by_name("lin")
    assert changed is not None
    assert (changed.totp_secret, changed.must_change_password) == (secret, True)
    store.close()


@pytest.mark.parametrize(
    "word", ["fedsim2026", "FEDSIM-2026", "fedsim-fedsim", "fedsim-christopher-wang", "gnaw-rehpotsirhc"]
)
def test_words_of_the_context_are_refused(word: str) -> None:
    assert passwords.password_problem(word, "christopher-wang") is not None


@pytest.mark.parametrize("word", ["#%#%!!??)(/&zq", "correct horse battery staple", "a long enough password"])
def test_neither_marks_nor_spaces_make_a_password_worse(word: str) -> None:
    assert passwords.password_problem(word, "lin") is None
