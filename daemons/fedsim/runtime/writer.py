"""The writer thread of a daemon: what must be durable is written there, so that no fsync blocks the event loop.

Writes are carried out one after the other, in the order of their submission: a later one finds what an earlier one has
stored. Each ends with a call in the loop, which gets the result or raises the write's error (for example a full disk).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

Result = TypeVar("Result")


def raise_error(future: Future[Any]) -> None:
    """Raise what a write raised, if it did."""
    future.result()


class Writer:
    """Use it as a context manager, which waits at its end for all writes. `fileno` becomes readable when writes end."""

    def __init__(self) -> None:
        self._ended: deque[tuple[Future[Any], Callable[[Future[Any]], None]]] = deque()

    def __enter__(self) -> Self:
        """Start the thread."""
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = ThreadPoolExecutor(1, "writer")
        return self

    def __exit__(self, *_: object) -> None:
        """Carry out what was submitted, then end the thread."""
        self._thread.shutdown()
        os.close(self._eventfd)

    def fileno(self) -> int:
        """For the daemon's selector; `dispatch` is to be called when it is readable."""
        return self._eventfd

    def submit(self, write: Callable[[], Result], ended: Callable[[Future[Result]], None] = raise_error) -> None:
        """Call `write` in the writer's thread, then `ended` in the loop."""

        def notify(future: Future[Result]) -> None:  # in the writer's thread
            self._ended.append((future, ended))
            os.eventfd_write(self._eventfd, 1)

        self._thread.submit(write).add_done_callback(notify)

    def dispatch(self) -> None:
        """Call back for the writes that have ended. An exception passes through; the others are called back later."""
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return
        try:
            while self._ended:
                future, ended = self._ended.popleft()
                ended(future)
        finally:
            if self._ended:
                os.eventfd_write(self._eventfd, 1)

    def drain(self) -> None:
        """Wait for the writes that were submitted, and call back for none of them.

        For a caller that continues from what is stored, after tasks were suspended.
        """
        self._thread.submit(lambda: None).result()
        self._ended.clear()
