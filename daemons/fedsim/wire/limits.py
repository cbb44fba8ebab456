"""What a link puts up with, and how it measures a sender that is too slow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConnectionLimits:
    """What a link puts up with. `quiet_seconds`: how long somebody may be slow in the midst of something."""

    max_header_bytes: int
    quiet_seconds: float
    idle_seconds: float
    stall_seconds: float
    min_bytes_per_second: int


class Pace:
    """How many seconds a sender lags behind the least rate, all its open bodies together.

    A leaky bucket: time in which bytes of a body are due fills it, bytes of bodies drain it, and nothing else does. So
    neither offers nor pings buy time, and bodies that wait while a smaller one is sent are none of it. Bytes that came
    faster than they had to are not saved up.
    """

    def __init__(self, rules: ConnectionLimits, now: float) -> None:
        self._rate = rules.min_bytes_per_second
        self._patience = rules.quiet_seconds
        self._lag = 0.0
        self._due = False
        self._at = now

    def note(self, now: float, *, body_bytes: int, due: bool) -> None:
        """So many bytes of bodies have come since the last call; whether more are due from here on."""
        if not self._rate:
            return
        if self._due:
            self._lag += now - self._at
        self._lag = max(0.0, self._lag - body_bytes / self._rate)
        self._due = due
        self._at = now

    @property
    def deadline(self) -> float | None:
        """When the patience ends if nothing more comes; None while nothing is due."""
        return self._at + self._patience - self._lag if self._due else None
