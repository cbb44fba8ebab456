"""Limits on guessing passwords, which never lock the owner of a name out.

Wrong passwords count for the pair of an address and a name, and for the address with all names. A browser in which the
user has logged in before is known by a cookie and has a limit of its own: what others try changes nothing for it. A
name under attack from many addresses is slowed for all other browsers, never locked (after OWASP, "Slow down online
guessing attacks with device cookies").
"""

from __future__ import annotations

import secrets
from hashlib import blake2b
from typing import Final

from fedsim.config import WebConfig
from fedsim.store import Store
from fedsim.store.records import User
from fedsim.web.throttle import Throttle, address_key, forgive

SLOW_SECONDS: Final = 10
"""Between two attempts, from unknown browsers together, at a name under attack."""
NAMES_OF_AN_ADDRESS: Final = 3
"""Wrong passwords from an address, with all names together, as a multiple of those with one name."""
_KIND: Final = "login"


def sign(user: User, purpose: str, text: str) -> str:
    """A code of 16 bytes, hexadecimal, which only this web can make, and only until the user's password changes."""
    key = blake2b(user.password_hash.encode(), digest_size=32).digest()
    return blake2b(f"{purpose} {user.id} {text}".encode(), key=key, digest_size=16).hexdigest()


def browser_mark(user: User) -> str:
    """The value of the cookie by which a browser is known after a log-in of this user."""
    nonce = secrets.token_urlsafe(16)
    return f"{nonce}.{sign(user, 'browser', nonce)}"


def known_browser(user: User | None, mark: str) -> str | None:
    """The random part of the mark of a browser that is known for this user; None for any other browser."""
    nonce, _, signature = mark.partition(".")
    known = user is not None and secrets.compare_digest(signature.encode(), sign(user, "browser", nonce).encode())
    return nonce if known else None


class LoginLimits:
    """The limits for one attempt to log in.

    Args:
        store: counts the attempts.
        config: the number of attempts and their window.
        name: as it was typed, normalised.
        user: with this name, if there is one.
        address: of the client.
        mark: the browser's cookie, possibly empty.
    """

    def __init__(
        self, store: Store, config: WebConfig, name: str, user: User | None, *, address: str, mark: str
    ) -> None:
        self._store = store
        name_key, most = _name_key(name), config.login_attempts
        browser = known_browser(user, mark)
        self._slow: Throttle | None = None
        if browser is not None:
            self._own = f"browser:{browser}"
            limits = {self._own: most}
        else:
            self._own = f"pair:{address_key(address)} {name_key}"
            limits = {self._own: most, address_key(address): most * NAMES_OF_AN_ADDRESS}
            self._slow = Throttle(store, _KIND, address, {f"slow:{name_key}": 1}, SLOW_SECONDS)
        self._throttle = Throttle(store, _KIND, address, limits, config.login_window_seconds)
        self._of_name = Throttle(store, _KIND, address, {name_key: most}, config.login_window_seconds)

    def check(self, now: float) -> None:
        """Refuse an attempt beyond the limits.

        Raises:
            Fault: 429 with `retry_after`.
        """
        self._throttle.check(now)
        if self._slow is not None and self._of_name.is_reached(now):
            self._slow.check(now)
            self._slow.count(now)

    def failed(self, now: float) -> None:
        """Count a wrong password."""
        self._throttle.count(now)
        if self._slow is not None:
            self._of_name.count(now)

    def succeeded(self) -> None:
        """Forget the wrong passwords of this browser, or of this address with this name."""
        forgive(self._store, _KIND, self._own)


def _name_key(name: str) -> str:
    return f"name:{name.casefold()[:64]}"
