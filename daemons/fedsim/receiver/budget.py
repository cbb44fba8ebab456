"""How much of a processor strangers may use: a budget that fills with time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class TimeBudget:
    """Processor time that fills at a fixed share of the clock's, up to a reserve. From any thread.

    It may be overdrawn, and then is empty until the debt has been filled again (a token bucket).

    Args:
        share: seconds of processor time in a second.
        reserve: the most seconds that are saved up.
    """

    def __init__(self, share: float, reserve: float) -> None:
        self._share = share
        self._reserve = reserve
        self._left = reserve
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def wait_seconds(self) -> float:
        """How long it is still empty; 0 if it is not."""
        with self._lock:
            return max(0.0, -self._fill() / self._share)

    @contextmanager
    def charged(self) -> Iterator[None]:
        """What this thread does in the block is paid from the budget."""
        started = time.thread_time()
        try:
            yield
        finally:
            with self._lock:
                self._left = self._fill() - (time.thread_time() - started)

    def _fill(self) -> float:
        now = time.monotonic()
        self._left = min(self._reserve, self._left + (now - self._at) * self._share)
        self._at = now
        return self._left
