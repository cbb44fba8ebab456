"""Limits the attempts per key within a time window, against guessing and flooding.

Used for log-ins and registrations. Attempts are stored in the database, so a restart of the web does not reset them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedsim.config.fields import network_of
from fedsim.log import get_logger
from fedsim.store import Store
from fedsim.web.errors import Fault
from fedsim.web.i18n import duration, tr


@dataclass(frozen=True)
class Throttle:
    """A limit on attempts.

    Args:
        kind: what is attempted; different kinds are counted separately.
        address: the client's address, for the log.
        limits: key -> number of attempts allowed.
        window_seconds: how long an attempt counts.
    """

    store: Store
    kind: str
    address: str
    limits: dict[str, int]
    window_seconds: float

    def check(self, now: float) -> None:
        """Refuse if a key has reached its limit. Refused attempts are not counted, so the wait is at most one window.

        Raises:
            Fault: 429 with `retry_after`.
        """
        if self.is_reached(now):
            get_logger().warning(f"{self.kind}_throttled", address=self.address)
            text = tr("Too many attempts. Try again in at most %(time)s.", time=duration(self.window_seconds))
            raise Fault(429, text, retry_after=math.ceil(self.window_seconds))

    def is_reached(self, now: float) -> bool:
        """Whether a key has reached its limit."""
        return any(self.store.attempts.count(_stored(self.kind, key), now) >= most for key, most in self.limits.items())

    def count(self, now: float) -> None:
        """Record an attempt under every key."""
        for key in self.limits:
            self.store.attempts.record(_stored(self.kind, key), now=now, until=now + self.window_seconds)


def forgive(store: Store, kind: str, key: str) -> None:
    """Reset the attempts under this key."""
    store.attempts.clear(_stored(kind, key))


def _stored(kind: str, key: str) -> str:
    return f"{kind} {key}"


def address_key(address: str) -> str:
    """The key of an address: for IPv6 of its network, which one client can use as a whole."""
    return f"address:{network_of(address)}"
