"""A file that one host offers while another one is about to send it: the offer waits for the end of that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.wire.transport.receiving import Incoming


class ExpectedFile:
    """An offer that is answered later: `settle` says that nothing more is to be waited for.

    Args:
        resolve: returns the file to be received from the host that made the offer, None if it is stored by now; raises
            Refused. Called in the turn of the connection on which it was offered, after `settle`.
        cancelled: called when the offer has ended before.
    """

    def __init__(self, resolve: Callable[[], Incoming | None], cancelled: Callable[[], None]) -> None:
        self.resolve = resolve
        self.cancel = cancelled
        self._lock = threading.Lock()
        self._settled = False
        self._notify: Callable[[], None] | None = None

    def when_settled(self, notify: Callable[[], None]) -> None:
        """Call `notify` once `settle` was called, from any thread; at once if it was."""
        with self._lock:
            self._notify = notify
            settled = self._settled
        if settled:
            notify()

    def settle(self) -> None:
        """The file is stored, or does not come from elsewhere any more; from any thread, can be repeated."""
        with self._lock:
            first, self._settled = not self._settled, True
            notify = self._notify
        if first and notify is not None:
            notify()
