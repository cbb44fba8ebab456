"""When a node offers its round's updates again, and which files it has offered already."""

from __future__ import annotations

import time
from typing import Final

from fedsim.spool.files import FileId

_FIRST_SECONDS: Final = 30.0
_MOST_SECONDS: Final = 600.0


class OfferSchedule:
    """The offers of one task: repeated after 30 s without a new round, then less and less often."""

    def __init__(self) -> None:
        self._offered: set[FileId] = set()
        self.reset()

    def reset(self) -> None:
        """A model has arrived."""
        self._pause = _FIRST_SECONDS
        self._due = time.monotonic() + self._pause

    def add(self, file: FileId) -> bool:
        """Note an offer; returns whether it is the first of this file."""
        known = file in self._offered
        self._offered.add(file)
        return not known

    def due(self) -> bool:
        """Whether it is time to offer again; then the next time is later."""
        if time.monotonic() < self._due:
            return False
        self._pause = min(2 * self._pause, _MOST_SECONDS)
        self._due = time.monotonic() + self._pause
        return True
