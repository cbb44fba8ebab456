"""The event loop of a daemon that runs tasks: one thread, readable descriptors and timers."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from selectors import EVENT_READ, BaseSelector
from typing import Protocol

Callback = Callable[[], None]


class HasFileno(Protocol):
    """An object whose descriptor becomes readable when it has something new."""

    def fileno(self) -> int:
        """The descriptor."""


class Timer:
    """Calls back once when it is due; `start` sets it again."""

    def __init__(self, callback: Callback) -> None:
        self.due = inf
        self.callback = callback

    def start(self, seconds: float = 0.0) -> None:
        """Call back in `seconds`, and not at the time that was set before."""
        self.due = time.monotonic() + seconds

    def cancel(self) -> None:
        """Do not call back."""
        self.due = inf


class EventLoop:
    """Waits for descriptors and timers and calls back, one call at a time."""

    def __init__(self, selector: BaseSelector) -> None:
        self.selector = selector
        self._timers: list[Timer] = []

    def watch(self, source: HasFileno, callback: Callback) -> None:
        """Call back whenever `source` is readable."""
        self.selector.register(source, EVENT_READ, callback)

    def timer(self, callback: Callback) -> Timer:
        """A new timer, not yet started."""
        timer = Timer(callback)
        self._timers.append(timer)
        return timer

    def run_once(self, until: float) -> None:
        """Wait for an event, at most until the time `until` (time.monotonic); call back for all that are due.

        An exception of a callback passes through; what was not called back for then is found again at the next turn.
        """
        until = min(until, *(timer.due for timer in self._timers))
        for key, _ in self.selector.select(max(0.0, until - time.monotonic())):
            key.data()
        now = time.monotonic()
        for timer in self._timers:
            if timer.due <= now:
                timer.due = inf
                timer.callback()
