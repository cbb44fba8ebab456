"""Accounts: registration, log-in, passwords, and tokens.

No secret is stored in plain text: passwords as argon2id, session ids and tokens as blake2b of 256 random bits.
"""

from __future__ import annotations

import hmac
import re
import secrets
import unicodedata
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from fedsim.config import OpenIdConfig, WebConfig
from fedsim.durations import DAY_SECONDS
from fedsim.errors import BadInput
from fedsim.log import get_logger
from fedsim.store import Store
from fedsim.store.records import Event, LoginSession, Token, User, UserRole, UserState
from fedsim.web import passwords
from fedsim.web.errors import Fault, Problems
from fedsim.web.i18n import DEFAULT_LANGUAGE, tr
from fedsim.web.login_limits import LoginLimits
from fedsim.web.openid import Person
from fedsim.web.throttle import Throttle, address_key

MAX_LABEL_CHARACTERS = 80
MAX_NAME_CHARACTERS = 64
DEFAULT_TOKEN_DAYS = 90
RESET_PASSWORD_BYTES = 16
TOKEN_PREFIX = "fedsim_"  # noqa: S105 - a mark by which people and secret scanners know a token, not a secret
_NAME = re.compile(r"^[^\W_][\w.@-]{1,63}$")


def hash_secret(secret: str) -> str:
    """The stored form of a session id or token: 32 bytes, hex. They are random, so a fast hash is safe."""
    return blake2b(secret.encode(), digest_size=32).hexdigest()


def clean_name(name: str) -> str:
    """Normalise a name, so that names that look the same are the same."""
    return unicodedata.normalize("NFKC", name).strip()


def _create(
    store: Store, name: str, password: str, role: UserRole, state: UserState, now: float, **further: Any
) -> User:
    name = clean_name(name)
    problems: Problems = {}
    if not _NAME.match(name):
        problems["name"] = tr("must be 2 to 64 letters, digits, “_”, “.”, “@” or “-”, beginning with a letter or digit")
    elif store.users.by_name(name) is not None:
        problems["name"] = tr("is taken: choose another name")
    if problem := passwords.password_problem(password, name):
        problems["password"] = problem
    if problems:
        raise Fault(422, tr("The account cannot be created: correct the values below."), problems=problems)
    try:
        return store.users.create(name, passwords.hash_password(password), role=role, state=state, now=now, **further)
    except BadInput as error:  # the name was taken concurrently
        taken: Problems = {"name": tr("is taken: choose another name")}
        raise Fault(422, tr("The account cannot be created: correct the values below."), problems=taken) from error


def create_admin(store: Store, name: str, password: str, *, now: float, must_change: bool = False) -> User:
    """Create an administrator, such as the first one of a new installation.

    `must_change`: the password must be changed after the first log-in, because someone else chose it.

    Raises:
        Fault: a `BadInput` whose `problems` describe what is wrong with the name or the password.
    """
    user = _create(
        store, name, password, UserRole.ADMIN, UserState.ACTIVE, now, language="", must_change_password=must_change
    )
    _note(store, "admin_created", f"{user.name} was made as an administrator", user.name, now)
    return user


def register(
    store: Store, config: WebConfig, name: str, password: str, *, address: str, language: str, now: float
) -> User:
    """Create a user as the configuration allows: active, waiting for approval, or not at all.

    Every attempt counts, even a failed one: it may cost a password hash, or reveal whether a name is taken.

    Raises:
        Fault: registration is closed (403), there were too many attempts (429), too many are being processed (503), or
            the name or password is invalid (422, with problems).
    """
    if config.registration == "closed":
        raise Fault(403, tr("Registration is closed. Ask an administrator for an account."))
    limits = {address_key(address): config.registrations_per_address, "all_users": config.registrations_overall}
    throttle = Throttle(store, "registration", address, limits, config.registration_window_seconds)
    throttle.check(now)
    throttle.count(now)
    state = UserState.ACTIVE if config.registration == "open" else UserState.WAITING
    user = _create(store, name, password, UserRole.USER, state, now, language=language or DEFAULT_LANGUAGE)
    _note(store, "user_registered", f"{user.name} registered", user.name, now)
    return user


def log_in(
    store: Store, config: WebConfig, name: str, password: str, *, address: str, now: float, mark: str = ""
) -> User:
    """Return the user with this name and password.

    Args:
        store: the accounts.
        config: the limits.
        name: as it was typed.
        password: as it was typed.
        address: of the client.
        now: in seconds since the epoch.
        mark: the cookie of a browser in which the user has logged in before, see `login_limits`.

    Raises:
        Fault: wrong name or password (403); not yet approved, or disabled (403, only for the right password); too many
            failed attempts (429, with `retry_after`); too many at present (503).
    """
    name = clean_name(name)
    user = store.users.by_name(name)
    limits = LoginLimits(store, config, name, user, address=address, mark=mark)
    limits.check(now)
    form = passwords.matching_form(user.password_hash if user else None, password)
    if user is None or form is None:
        limits.failed(now)
        # People sometimes type the password into the name's field: only existing names are logged.
        get_logger().warning("login_failed", user=user.name if user else None, address=address)
        raise Fault(403, tr("The name or the password is wrong."))
    limits.succeeded()
    _check_active(user, address)
    if passwords.is_outdated(user.password_hash, form):
        renewed = passwords.hash_password(password)
        store.users.renew_password_hash(user.id, user.password_hash, renewed)
        user = replace(user, password_hash=renewed)
    if user.totp_secret is None:
        get_logger().info("logged_in", user=user.name, address=address, factors="password")
    else:
        get_logger().info("password_accepted", user=user.name, address=address)
    return user


def log_in_by_openid(store: Store, config: OpenIdConfig, person: Person, *, language: str, now: float) -> User:
    """Return the user whom the provider has identified; the first log-in makes the account, if that is allowed.

    Raises:
        Fault: 403 if there is no account and none is made, or it is waiting or disabled.
    """
    key = blake2b(f"{person.issuer} {person.subject}".encode(), digest_size=32).hexdigest()
    user = store.users.by_openid(key)
    if user is None:
        if config.registration == "closed":
            raise Fault(403, tr("Registration is closed. Ask an administrator for an account."))
        state = UserState.ACTIVE if config.registration == "open" else UserState.WAITING
        user = _create_for(store, person, key, state, language, now)
        _note(store, "user_registered", f"{user.name} registered by {person.issuer}", user.name, now)
    _check_active(user)
    get_logger().info("logged_in", user=user.name, issuer=person.issuer)
    return user


def _create_for(store: Store, person: Person, key: str, state: UserState, language: str, now: float) -> User:
    """A user with the proposed name, or one like it if that is taken or not possible."""
    wanted = re.sub(r"[^\w.@-]", "", clean_name(person.name))[: MAX_NAME_CHARACTERS - 9]
    base = wanted if _NAME.match(wanted) else f"user-{key[:8]}"
    random_password = passwords.hash_password(secrets.token_urlsafe(32))  # no one knows it
    for name in (base, f"{base}-{key[:8]}"):
        with suppress(BadInput):  # taken
            return store.users.create(
                name,
                random_password,
                role=UserRole.USER,
                state=state,
                language=language or DEFAULT_LANGUAGE,
                now=now,
                openid_key=key,
            )
    raise Fault(403, tr("Your account was just changed. Log in again."))


def _check_active(user: User, address: str | None = None) -> None:
    if user.state is not UserState.ACTIVE:
        get_logger().warning("login_failed", user=user.name, address=address, state=user.state.value)
    if user.state is UserState.WAITING:
        raise Fault(403, tr("Your account is waiting for an administrator's approval."))
    if user.state is UserState.DISABLED:
        raise Fault(403, tr("Your account is disabled. Ask an administrator."))


def start_session(
    store: Store,
    config: WebConfig,
    user: User,
    *,
    old: str | None,
    now: float,
    address: str | None = None,
    browser: str | None = None,
) -> tuple[str, LoginSession]:
    """Start a session and return its random id, which only the browser stores; an `old` session of this browser ends.

    Raises:
        Fault: 403 if the user was disabled, or got another password, since `user` was read.
    """
    if old:
        store.sessions.delete(hash_secret(old))
    session_id, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    expires_at = now + config.session_hours * 3600
    created = store.sessions.create(
        hash_secret(session_id), user, csrf, now=now, expires_at=expires_at, address=address, browser=browser
    )
    if not created:
        raise _changed()
    return session_id, LoginSession(user, csrf, now, expires_at)


def change_password(
    store: Store, config: WebConfig, user: User, old: str, new: str, *, address: str, now: float
) -> User:
    """Change the user's own password, and revoke all sessions and tokens. Returns the updated user.

    Raises:
        Fault: 422 with the problem of `old` or `new`; 429 after too many wrong `old` passwords.
    """
    problems: Problems = {}
    if not is_own_password(store, config, user, old, address=address, now=now):
        problems["old"] = tr("is not your password")
    if problem := passwords.password_problem(new, user.name):
        problems["new"] = problem
    elif new == old:
        problems["new"] = tr("is your present password")
    if problems:
        raise Fault(422, tr("The password was not changed."), problems=problems)
    changed = replace(user, password_hash=passwords.hash_password(new), must_change_password=False)
    store.users.set_password_hash(user.id, changed.password_hash)
    _note(store, "password_changed", f"{user.name} changed the password", user.name, now)
    return changed


def is_own_password(store: Store, config: WebConfig, user: User, password: str, *, address: str, now: float) -> bool:
    """Whether this is the password of a user who is logged in. An abandoned session is no place to guess it.

    Raises:
        Fault: 429 after too many wrong ones.
    """
    limits = {f"user:{user.id}": config.login_attempts}
    throttle = Throttle(store, "password", address, limits, config.login_window_seconds)
    throttle.check(now)
    if passwords.is_right(user.password_hash, password):
        return True
    throttle.count(now)
    get_logger().warning("password_refused", user=user.name, address=address)
    return False


def set_second_factor(store: Store, user: User, secret: str | None, *, by: User, now: float) -> None:
    """Set the secret of the user's second factor, or remove it."""
    store.users.set_totp(user.id, secret)
    kind, text = ("second_factor_removed", "removed") if secret is None else ("second_factor_set", "set up")
    _note(store, kind, f"{by.name} {text} the second factor of {user.name}", by.name, now)


def reset_password(store: Store, user: User, *, by: User, now: float) -> str:
    """Set a generated password and return it; the user's sessions and tokens are revoked.

    The user must choose another one after the next log-in, because someone else knows this one.

    Raises:
        Fault: 422 for a user who logs in by a provider and has no password here.
    """
    if user.openid_key is not None:
        raise Fault(422, tr("%(name)s logs in by a provider and has no password here.", name=user.name))
    password = secrets.token_urlsafe(RESET_PASSWORD_BYTES)
    store.users.set_password_hash(user.id, passwords.hash_password(password), must_change=True)
    _note(store, "password_reset", f"{by.name} reset the password of {user.name}", by.name, now)
    return password


def change_user(
    store: Store, user: User, *, by: User, state: UserState | None, role: UserRole | None, now: float
) -> None:
    """Approve, disable or enable a user, or change the role. Administrators cannot lock themselves out.

    Raises:
        Fault: 422 if administrators would change their own state or role.
    """
    if user.id == by.id:
        raise Fault(422, tr("You cannot change your own state or role: ask another administrator."))
    if state is not None:
        store.users.set_state(user.id, state)
        _note(store, "user_state", f"{by.name} made {user.name} {state.value}", by.name, now)
    if role is not None:
        store.users.set_role(user.id, role)
        _note(store, "user_role", f"{by.name} made {user.name} {role.value}", by.name, now)


def make_token(
    store: Store, user: User, label: object, *, now: float, days: object = None, max_days: int = DEFAULT_TOKEN_DAYS
) -> tuple[str, Token]:
    """Create a bearer token for the JSON API; returns the secret, which is not stored, and the record.

    Args:
        store: the accounts.
        user: the owner.
        label: what it is used for.
        now: in seconds since the epoch.
        days: after which it expires; None: 90, or `max_days` if these are fewer.
        max_days: the most.

    Raises:
        Fault: 422 if the label is empty, too long or not printable, or the days are not valid; 403 as in
            `start_session`.
    """
    label = label.strip() if isinstance(label, str) and label.isprintable() else ""
    problems: Problems = {}
    if not 1 <= len(label) <= MAX_LABEL_CHARACTERS:
        problems["label"] = tr("must have 1 to %(limit)s characters", limit=MAX_LABEL_CHARACTERS)
    days = min(DEFAULT_TOKEN_DAYS, max_days) if days is None else days
    if isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= max_days:
        problems["days"] = tr("must be a whole number from 1 to %(limit)s", limit=max_days)
    if problems or not isinstance(days, int):
        raise Fault(422, tr("The token was not created."), problems=problems)
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = store.tokens.create(
        user, label, hash_secret(secret), secret[: len(TOKEN_PREFIX) + 4], now, expires_at=now + days * DAY_SECONDS
    )
    if token is None:
        raise _changed()
    _note(store, "token_created", f"{user.name} made the token “{label}”", user.name, now)
    return secret, token


def _changed() -> Fault:
    return Fault(403, tr("Your account was just changed. Log in again."))


def same_secret(actual: str, expected: str) -> bool:
    """Compare in constant time."""
    return bool(expected) and hmac.compare_digest(actual.encode(), expected.encode())


def _note(store: Store, kind: str, text: str, user: str, now: float) -> None:
    store.events.add(Event(now, kind, text, user=user))
    get_logger().info(kind, user=user, text=text)
