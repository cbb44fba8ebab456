"""What the receiver counts; metrics read it, `systemctl status` shows some of it."""

from __future__ import annotations

import threading
from collections import Counter


class Counters:
    """Named whole numbers, counted from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """Count."""
        with self._lock:
            self._counts[name] += amount

    def snapshot(self) -> dict[str, int]:
        """All counts so far."""
        with self._lock:
            return dict(self._counts)
