"""Lets the watchdog see that the threads of a reactor work."""

from __future__ import annotations

import threading

from fedsim.wire.transport.reactor import Reactor


class Pulse:
    """An actor that only notes that it was called."""

    deadline: float | None = None

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._answered = threading.Event()
        reactor.add(self)

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return (-1, 0)

    def handle(self, _: int) -> bool:
        """See Actor."""
        self._answered.set()
        return False

    def beats(self) -> bool:
        """Whether the reactor has answered since the last call; if so, it is asked again."""
        answered = self._answered.is_set()
        if answered:
            self._answered.clear()
            self._reactor.wake(self)
        return answered
