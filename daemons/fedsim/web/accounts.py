"""Accounts: registration, log-in, passwords, and tokens.

No secret is stored in plain text: passwords as argon2id, session ids and tokens as blake2b of 256 random bits.
"""

from __future__ import annotations

import hmac
import re
import secrets
import unicodedata
from dataclasses import replace
from hashlib import blake2b

from fedsim.config import WebConfig
from fedsim.errors import BadInput
from fedsim.log import get_logger
from fedsim.store import Store
from fedsim.store.records import Event, LoginSession, Token, User, UserRole, UserState
from fedsim.web import passwords
from fedsim.web.errors import Fault, Problems
from fedsim.web.i18n import DEFAULT_LANGUAGE, tr
from fedsim.web.throttle import Throttle, address_key, forgive

MAX_LABEL_CHARACTERS = 80
TOKEN_PREFIX = "fedsim_"  # noqa: S105 - a mark by which people and secret scanners know a token, not a secret
_NAME = re.compile(r"^[^\W_][\w.@-]{1,63}$")


def hash_secret(secret: str) -> str:
    """The stored form of a session id or token: 32 bytes, hex. They are random, so a fast hash is safe."""
    return blake2b(secret.encode(), digest_size=32).hexdigest()


def clean_name(name: str) -> str:
    """Normalise a name, so that names that look the same are the same."""
    return unicodedata.normalize("NFKC", name).strip()


def _create(
    store: Store, name: str, password: str, role: UserRole, state: UserState, language: str, now: float
) -> User:
    name = clean_name(name)
    problems: Problems = {}
    if not _NAME.match(name):
        problems["name"] = tr("must be 2 to 64 letters, digits, “_”, “.”, “@” or “-”, beginning with a letter or digit")
    elif store.users.by_name(name) is not None:
        problems["name"] = tr("is taken: choose another name")
    if problem := passwords.password_problem(password):
        problems["password"] = problem
    if problems:
        raise Fault(422, tr("The account cannot be created: correct the values below."), problems=problems)
    try:
        return store.users.create(
            name, passwords.hash_password(password), role=role, state=state, language=language, now=now
        )
    except BadInput as error:  # the name was taken concurrently
        taken: Problems = {"name": tr("is taken: choose another name")}
        raise Fault(422, tr("The account cannot be created: correct the values below."), problems=taken) from error


def create_admin(store: Store, name: str, password: str, *, now: float) -> User:
    """Create an administrator, such as the first one of a new installation.

    Raises:
        Fault: a `BadInput` whose `problems` describe what is wrong with the name or the password.
    """
    user = _create(store, name, password, UserRole.ADMIN, UserState.ACTIVE, "", now)
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
    user = _create(store, name, password, UserRole.USER, state, language or DEFAULT_LANGUAGE, now)
    _note(store, "user_registered", f"{user.name} registered", user.name, now)
    return user


def log_in(store: Store, config: WebConfig, name: str, password: str, *, address: str, now: float) -> User:
    """Return the user with this name and password.

    Raises:
        Fault: wrong name or password (403); not yet approved, or disabled (403, only for the right password); too many
            failed attempts for this name or from this address (429, with `retry_after`); too many at present (503).
    """
    name = clean_name(name)
    throttle = _of_log_in(store, config, name, address)
    throttle.check(now)
    user = store.users.by_name(name)
    form = passwords.matching_form(user.password_hash if user else None, password)
    if user is None or form is None:
        throttle.count(now)
        # People sometimes type the password into the name's field: only existing names are logged.
        get_logger().warning("login_failed", user=user.name if user else None, address=address)
        raise Fault(403, tr("The name or the password is wrong."))
    forgive(store, "login", _name_key(name))
    if user.state is UserState.WAITING:
        raise Fault(403, tr("Your account is waiting for an administrator's approval."))
    if user.state is UserState.DISABLED:
        raise Fault(403, tr("Your account is disabled. Ask an administrator."))
    if passwords.is_outdated(user.password_hash, form):
        renewed = passwords.hash_password(password)
        store.users.renew_password_hash(user.id, user.password_hash, renewed)
        user = replace(user, password_hash=renewed)
    get_logger().info("logged_in", user=user.name, address=address)
    return user


def _of_log_in(store: Store, config: WebConfig, name: str, address: str) -> Throttle:
    limits = dict.fromkeys((_name_key(name), address_key(address)), config.login_attempts)
    return Throttle(store, "login", address, limits, config.login_window_seconds)


def _name_key(name: str) -> str:
    return f"name:{name.casefold()[:64]}"


def start_session(
    store: Store, config: WebConfig, user: User, *, old: str | None, now: float
) -> tuple[str, LoginSession]:
    """Start a session and return its random id, which only the browser stores; an `old` session of this browser ends.

    Raises:
        Fault: 403 if the user was disabled, or got another password, since `user` was read.
    """
    if old:
        store.sessions.delete(hash_secret(old))
    session_id, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    expires_at = now + config.session_hours * 3600
    if not store.sessions.create(hash_secret(session_id), user, csrf, now=now, expires_at=expires_at):
        raise _changed()
    return session_id, LoginSession(user, csrf, now, expires_at)


def change_password(
    store: Store, config: WebConfig, user: User, old: str, new: str, *, address: str, now: float
) -> User:
    """Change the user's own password, and revoke all sessions and tokens. Returns the updated user.

    Raises:
        Fault: 422 with the problem of `old` or `new`; 429 after too many wrong `old` passwords.
    """
    # Throttled like a log-in, so that an abandoned session cannot be used to guess the password.
    throttle = _of_log_in(store, config, user.name, address)
    throttle.check(now)
    problems: Problems = {}
    if not passwords.is_right(user.password_hash, old):
        throttle.count(now)
        problems["old"] = tr("is not your password")
    if problem := passwords.password_problem(new):
        problems["new"] = problem
    if problems:
        raise Fault(422, tr("The password was not changed."), problems=problems)
    changed = replace(user, password_hash=passwords.hash_password(new))
    store.users.set_password_hash(user.id, changed.password_hash)
    _note(store, "password_changed", f"{user.name} changed the password", user.name, now)
    return changed


def reset_password(store: Store, user: User, *, by: User, now: float) -> str:
    """Set a generated password and return it; the user's sessions and tokens are revoked."""
    password = secrets.token_urlsafe(12)
    store.users.set_password_hash(user.id, passwords.hash_password(password))
    forgive(store, "login", _name_key(user.name))
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


def make_token(store: Store, user: User, label: object, *, now: float) -> tuple[str, Token]:
    """Create a bearer token for the JSON API; returns the secret, which is not stored, and the record.

    Raises:
        Fault: 422 if the label is empty, too long or not printable; 403 as in `start_session`.
    """
    label = label.strip() if isinstance(label, str) and label.isprintable() else ""
    if not 1 <= len(label) <= MAX_LABEL_CHARACTERS:
        problem = tr("must have 1 to %(limit)s characters", limit=MAX_LABEL_CHARACTERS)
        raise Fault(422, tr("The token needs a label."), problems={"label": problem})
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = store.tokens.create(user, label, hash_secret(secret), secret[: len(TOKEN_PREFIX) + 4], now)
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
