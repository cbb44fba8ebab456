"""The brake on guessing and on flooding: so many attempts under a key within a window, then none until it has passed.

Log-ins and registrations share it. Attempts lie in the database, so a restart of the web forgives nothing.
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass

from fedsim.log import get_logger
from fedsim.store import Store
from fedsim.web.errors import Fault
from fedsim.web.i18n import duration, tr

# Whoever has one address of IPv6 has this whole network of them.
IPV6_NETWORK_BITS = 64


@dataclass(frozen=True)
class Throttle:
    """What is counted.

    Args:
        kind: for the log, and so that different things under one key are counted apart.
        address: where the attempt comes from, for the log.
        limits: how many attempts each key may have.
        window_seconds: how long an attempt counts.
    """

    store: Store
    kind: str
    address: str
    limits: dict[str, int]
    window_seconds: float

    def check(self, now: float) -> None:
        """Refuse if a key has had its attempts; what is refused is not counted, so nobody waits longer than one window.

        Raises:
            Fault: 429 with `retry_after`.
        """
        for key, limit in self.limits.items():
            if self.store.attempts.count(_stored(self.kind, key), now) >= limit:
                get_logger().warning(f"{self.kind}_throttled", address=self.address)
                text = tr("Too many attempts. Try again in at most %(time)s.", time=duration(self.window_seconds))
                raise Fault(429, text, retry_after=math.ceil(self.window_seconds))

    def count(self, now: float) -> None:
        """An attempt under every key."""
        for key in self.limits:
            self.store.attempts.record(_stored(self.kind, key), now=now, until=now + self.window_seconds)


def forgive(store: Store, kind: str, key: str) -> None:
    """What was counted under this key counts no more."""
    store.attempts.clear(_stored(kind, key))


def _stored(kind: str, key: str) -> str:
    return f"{kind} {key}"


def address_key(address: str) -> str:
    """The key of all addresses that one person can easily have."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return f"address:{address}"
    if isinstance(found, ipaddress.IPv6Address):
        return f"address:{ipaddress.ip_network((int(found), IPV6_NETWORK_BITS), strict=False)}"
    return f"address:{found}"
