"""Admits connections, and bounds what those cost whose other side has not identified itself.

A stranger can make this host compute: a TLS handshake costs a signature, each byte of a frame a turn. What all of them
cost together is paid from one budget. While that is empty they wait, each network's in turn, and the connections of
peers go on. One that waits for its first turn costs a few microseconds: nothing is made for it yet. The newest has the
first turn: strangers that hold their connections open do not delay a peer that connects after them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol

from fedsim.receiver.budget import TimeBudget
from fedsim.receiver.pending import PendingConnections

_SHARE: Final = 0.1
_RESERVE_SECONDS: Final = 0.2
_WAITING_FACTOR: Final = 16
_TURNS_FOR_EACH_NEW: Final = 3


class StrangerConnection(Protocol):
    """A connection whose other side has not identified itself."""

    ip_address: str

    def begin(self) -> None:
        """Serve it; called once."""

    def take_turn(self) -> None:
        """Go on with it: it was told to wait."""

    def replace(self) -> None:
        """Close it, because another connection came."""


class Admission:
    """An actor of the reactor. The methods in the first section may be called from any thread.

    Args:
        limit: the most connections that wait, and the most that are in their handshake.
        wake: requests a call of `handle`.
    """

    def __init__(self, limit: Callable[[], int], wake: Callable[[], None]) -> None:
        self._limit = limit
        self._wake = wake
        self._budget = TimeBudget(_SHARE, _RESERVE_SECONDS)
        self._lock = threading.Lock()
        self._waiting: PendingConnections[StrangerConnection] = PendingConnections()
        self._begun: PendingConnections[StrangerConnection] = PendingConnections()
        self._turns: PendingConnections[StrangerConnection] = PendingConnections()
        self._due: float | None = None

    # -- from any thread

    def __len__(self) -> int:
        """How many connections were begun and have not identified themselves."""
        return len(self._begun)

    def add(self, connection: StrangerConnection) -> None:
        """Serve a new connection as soon as the budget allows; it may take the place of another one."""
        with self._lock:
            replaced = self._waiting.add(connection, connection.ip_address, self._limit() * _WAITING_FACTOR)
        if replaced is not None:
            replaced.replace()
        self._wake()

    def must_wait(self, connection: StrangerConnection) -> bool:
        """Whether the budget is empty; then this connection, if it is one of these, is given a turn later."""
        if not self._budget.wait_seconds():
            return False
        with self._lock:
            if connection not in self._begun:
                return False
            if connection not in self._turns:
                self._turns.add(connection, connection.ip_address, len(self._turns) + 1)
        self._wake()
        return True

    def charged(self) -> AbstractContextManager[None]:
        """What the block does for a connection that has not identified itself is paid from the budget."""
        return self._budget.charged()

    def discard(self, connection: StrangerConnection) -> None:
        """A connection has identified itself or ended."""
        with self._lock:
            for group in (self._waiting, self._begun, self._turns):
                group.discard(connection)

    def close(self) -> None:
        """Close what was not begun."""
        while (connection := self._waiting.pop()) is not None:
            connection.replace()

    # -- for the reactor

    def interest(self) -> tuple[int, int]:
        """See Actor."""
        return (-1, 0)

    @property
    def deadline(self) -> float | None:
        """See Actor."""
        return self._due

    def handle(self, _: int) -> bool:
        """Give turns as far as the budget reaches: several to those that were begun for each one that is begun."""
        self._due = None
        given = 0
        while not (wait := self._budget.wait_seconds()):
            if given < _TURNS_FOR_EACH_NEW and self._give_turn():
                given += 1
            elif self._begin_newest() or given:
                given = 0
            else:
                return False  # no one waits; a connection that is added from now on requests another call
        if self._turns or self._waiting:
            self._due = time.monotonic() + wait
        return False

    def _give_turn(self) -> bool:
        """Let the next network's oldest connection that was told to wait go on; returns whether there was one."""
        with self._lock:
            connection = self._turns.pop()
        if connection is None:
            return False
        with self._budget.charged():
            connection.take_turn()
        return True

    def _begin_newest(self) -> bool:
        """Begin the next network's newest connection, in whose place another may end; returns whether there was one."""
        with self._lock:
            connection = self._waiting.pop(newest=True)
            if connection is None:
                return False
            replaced = self._begun.add(connection, connection.ip_address, self._limit())
        with self._budget.charged():
            connection.begin()
            if replaced is not None:
                replaced.replace()
        return True
