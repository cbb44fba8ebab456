"""The limits enforced on a connection, and the time that is measured against them. The only place that states them."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.errors import Refused


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits enforced on a connection.

    Attributes:
        max_header_bytes: of a frame.
        quiet_seconds: for the handshake, for each header, and for slow bodies in total.
        idle_seconds: without a transfer.
        stall_seconds: without a sign of life while an answer is due; a PING is sent after half of it.
        min_bytes_per_second: while bodies are due; 0 for no minimum.
    """

    max_header_bytes: int
    quiet_seconds: float
    idle_seconds: float
    stall_seconds: float
    min_bytes_per_second: int


class Pace:
    """Measures how many seconds a sender lags behind the minimum rate, all its open bodies together.

    A leaky bucket: time in which bytes of a body are due fills it, bytes of bodies drain it, and nothing else does. So
    neither offers nor pings gain time, and bodies that wait while a smaller one is sent do not count. Bytes received
    faster than required earn no credit.
    """

    def __init__(self, limits: ConnectionLimits, now: float) -> None:
        self._rate = limits.min_bytes_per_second
        self._patience = limits.quiet_seconds
        self._lag = 0.0
        self._due = False
        self._at = now

    def note(self, now: float, *, body_bytes: int, due: bool) -> None:
        """Count the bytes of bodies received since the last call; `due` says whether more are due from now on."""
        if not self._rate:
            return
        if self._due:
            self._lag += now - self._at
        self._lag = max(0.0, self._lag - body_bytes / self._rate)
        self._due = due
        self._at = now

    @property
    def deadline(self) -> float | None:
        """When the limit is reached if nothing more is received; None while nothing is due."""
        return self._at + self._patience - self._lag if self._due else None


class Timekeeper:
    """The time limits of one connection: when each is reached, and the refusal that then ends the connection."""

    def __init__(self, limits: ConnectionLimits, now: float) -> None:
        self._limits = limits
        self._opened_at = self._active_at = self._heard_at = now
        self._frame_since: float | None = None
        self._pace = Pace(limits, now)
        self._established = self._expects = self._finishing = self._pinged = False

    def heard(self, now: float, *, midway: bool, frames: bool) -> None:
        """Note that bytes were received: whether they completed `frames`, and whether another is `midway`."""
        self.active(now)
        if not midway:
            self._frame_since = None
        elif frames or self._frame_since is None:
            self._frame_since = now

    def active(self, now: float) -> None:
        """Note a sign of life."""
        self._active_at = self._heard_at = now
        self._pinged = False

    def note(
        self, now: float, *, established: bool, expects: bool, sent: int, received: int, due: bool, finishing: bool
    ) -> None:
        """Note the state of the transfers. Sending a body counts as a sign of life."""
        if sent or (expects and not self._expects):
            self.active(now)
        self._established, self._expects, self._finishing = established, expects, finishing
        self._pace.note(now, body_bytes=received, due=due)

    @property
    def deadline(self) -> float | None:
        """When `check` must be called, if ever."""
        return min((when for when, _, _ in self._limits_now()), default=None)

    def check(self, now: float) -> bool:
        """Whether a PING is due; raises Refused where a limit is exceeded."""
        for when, code, message in self._limits_now():
            if now >= when and code:
                raise Refused(code, message, retry=True)
        if self._expects and not self._pinged and now >= self._heard_at + self._limits.stall_seconds / 2:
            self._pinged = True
            return True
        return False

    def _limits_now(self) -> list[tuple[float, str, str]]:
        """The limits that apply now: when, the code (empty: send a PING) and the message that ends the connection."""
        limits = self._limits
        quiet, stall, idle = limits.quiet_seconds, limits.stall_seconds, limits.idle_seconds
        found: list[tuple[float, str, str]] = []
        if not self._established:
            return [(self._opened_at + quiet, "too_slow", f"no handshake within {quiet:g} seconds")]
        if self._frame_since is not None:
            message = f"a header was not complete within {quiet:g} seconds"
            found.append((self._frame_since + quiet, "too_slow", message))
        if self._pace.deadline is not None:
            rate = f"{limits.min_bytes_per_second} bytes per second for {quiet:g} seconds"
            message = f"it sent the bodies that were due at less than {rate}"
            found.append((self._pace.deadline, "too_slow", message))
        if self._expects:
            message = f"the other side did not answer for {stall:g} seconds"
            found.append((self._heard_at + stall, "lost", message))
            if not self._pinged:
                found.append((self._heard_at + stall / 2, "", ""))
        elif not self._finishing:
            found.append((self._active_at + idle, "idle", f"nothing was sent for {idle:g} seconds"))
        return found
