"""Limits the requests of each user, and of each address without a user, in memory."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass

MAX_KEYS = 10_000


@dataclass
class _Bucket:
    tokens: float
    at: float


class RequestRate:
    """Token buckets: `per_minute` requests at once, refilled at that rate. Threads share it.

    The buckets that were used longest ago are forgotten beyond `MAX_KEYS`, so that its memory does not grow with what
    strangers send.
    """

    def __init__(self, per_minute: int) -> None:
        self._capacity = float(per_minute)
        self._rate = per_minute / 60
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str, now: float) -> int:
        """Count a request; returns 0 if it is allowed, else the seconds after which the next one is."""
        with self._lock:
            bucket = self._buckets.setdefault(key, _Bucket(self._capacity, now))
            self._buckets.move_to_end(key)
            if len(self._buckets) > MAX_KEYS:
                self._buckets.popitem(last=False)
            bucket.tokens = min(self._capacity, bucket.tokens + max(0.0, now - bucket.at) * self._rate)
            bucket.at = now
            if bucket.tokens < 1:
                return math.ceil((1 - bucket.tokens) / self._rate)
            bucket.tokens -= 1
            return 0
