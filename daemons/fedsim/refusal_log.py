"""Logs what was refused, at a bounded rate: what one peer or stranger does neither fills the log nor hides others."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import structlog

_PERIOD_SECONDS: Final = 10.0
_MAX_KEYS: Final = 1024


@dataclass
class _Rate:
    until: float = 0.0
    logged: int = 0
    left_out: int = 0


class RefusalLog:
    """A few lines for each key (a peer, an address) in ten seconds; further ones are counted. From any thread.

    The next line of the same key says how many were left out. Of more than a thousand keys the oldest are forgotten.

    Args:
        lines: of one key in ten seconds.
    """

    def __init__(self, lines: int = 1) -> None:
        self._lines = lines
        self._lock = threading.Lock()
        self._rates: OrderedDict[str | None, _Rate] = OrderedDict()

    def warning(self, key: str | None, event: str, **fields: Any) -> None:
        """Log the event, unless this key has had its lines."""
        now = time.monotonic()
        with self._lock:
            rate = self._rates.setdefault(key, _Rate())
            self._rates.move_to_end(key)
            if len(self._rates) > _MAX_KEYS:
                self._rates.popitem(last=False)
            if now >= rate.until:
                rate.until, rate.logged = now + _PERIOD_SECONDS, 0
            if rate.logged >= self._lines:
                rate.left_out += 1
                return
            rate.logged += 1
            left_out, rate.left_out = rate.left_out, 0
        if left_out:
            fields["not_logged_before"] = left_out
        structlog.get_logger().warning(event, **fields)
