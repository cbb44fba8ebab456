"""The second factor: time-based one-time passwords (RFC 6238) of an authenticator app, each accepted once."""

from __future__ import annotations

import base64
import io
import re
import secrets
from typing import Final

import segno
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor import InvalidToken
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from fedsim.log import get_logger
from fedsim.store import Store
from fedsim.store.records import User
from fedsim.web.errors import Fault
from fedsim.web.i18n import tr
from fedsim.web.login_limits import sign
from fedsim.web.throttle import Throttle, forgive

STEP_SECONDS: Final = 30
DIGITS: Final = 6
_SECRET_BYTES: Final = 20
_SECRET = re.compile(r"^[A-Z2-7]{32}$")
_TICKET_SECONDS: Final = 300
_ATTEMPTS: Final = 5
_KIND: Final = "code"


def new_secret() -> str:
    """A random secret of 160 bits, base32."""
    return base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode("ascii")


def is_secret(text: str) -> bool:
    """Whether this can be a secret of `new_secret`."""
    return _SECRET.match(text) is not None


def provisioning_uri(secret: str, name: str) -> str:
    """The `otpauth:` address from which an authenticator app is set up."""
    return _totp(secret).get_provisioning_uri(name, "fedsim")


def qr_code(uri: str) -> str:
    """The address as a picture, an SVG element."""
    picture = io.BytesIO()
    segno.make(uri, error="m").save(
        picture, kind="svg", xmldecl=False, scale=4, border=4, dark="#000", light="#fff", svgclass="qr", lineclass=None
    )
    return picture.getvalue().decode("ascii")


def check_code(store: Store, user: User, secret: str, code: str, *, address: str, now: float) -> None:
    """Accept a code of the present time step or its neighbours, once.

    Raises:
        Fault: 403 for a wrong or used code; 429 after too many wrong ones.
    """
    # A code is asked for only after the right password, so counting by user locks no one else out.
    throttle = Throttle(store, _KIND, address, {f"user:{user.id}": _ATTEMPTS}, _TICKET_SECONDS)
    throttle.check(now)
    step = _matching_step(secret, code, now)
    if step is None or not store.users.use_totp_step(user.id, step):
        throttle.count(now)
        get_logger().warning("code_refused", user=user.name, address=address)
        raise Fault(403, tr("The code is wrong or was used before. Wait for the next one."))
    forgive(store, _KIND, f"user:{user.id}")


def make_ticket(user: User, now: float) -> str:
    """Confirms for five minutes that the user has given the right password."""
    until = int(now + _TICKET_SECONDS)
    return f"{user.id}.{until}.{sign(user, 'ticket', str(until))}"


def user_of_ticket(store: Store, ticket: str, now: float) -> User:
    """The user who has given the right password.

    Raises:
        Fault: 403 if the ticket is not valid, or no longer.
    """
    user_id, _, rest = ticket.partition(".")
    until, _, signature = rest.partition(".")
    numbers = all(part.isascii() and part.isdigit() and len(part) < 16 for part in (user_id, until))
    user = store.users.get(int(user_id)) if numbers else None
    if (
        user is None
        or user.totp_secret is None  # it was removed in between
        or int(until) < now
        or not secrets.compare_digest(signature.encode(), sign(user, "ticket", until).encode())
    ):
        raise Fault(403, tr("This page was open for too long: log in again."))
    return user


def _matching_step(secret: str, code: str, now: float) -> int | None:
    """The newest time step around the present one whose code this is."""
    digits = "".join(code.split())
    step = int(now // STEP_SECONDS)
    for candidate in (step + 1, step, step - 1):
        try:
            _totp(secret).verify(digits.encode(), candidate * STEP_SECONDS)
        except InvalidToken:
            continue
        return candidate
    return None


def _totp(secret: str) -> TOTP:
    # SHA-1 is what every authenticator app supports; HMAC-SHA-1 is not weakened by collisions.
    return TOTP(base64.b32decode(secret), DIGITS, SHA1(), STEP_SECONDS)  # noqa: S303
