"""Limits the attempts per key within a time window, against guessing and flooding.

Used for log-ins and registrations. Attempts are stored in the database, so a restart of the web does not reset them.
"""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass

from fedsim.log import get_logger
from fedsim.store import Store
from fedsim.web.errors import Fault
from fedsim.web.i18n import duration, tr

# A client with one IPv6 address usually controls the whole network of this size.
IPV6_NETWORK_BITS = 64


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
        for key, limit in self.limits.items():
            if self.store.attempts.count(_stored(self.kind, key), now) >= limit:
                get_logger().warning(f"{self.kind}_throttled", address=self.address)
                text = tr("Too many attempts. Try again in at most %(time)s.", time=duration(self.window_seconds))
                raise Fault(429, text, retry_after=math.ceil(self.window_seconds))

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
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return f"address:{address}"
    if isinstance(found, ipaddress.IPv6Address):
        return f"address:{ipaddress.ip_network((int(found), IPV6_NETWORK_BITS), strict=False)}"
    return f"address:{found}"
