"""The time for rules that delete by age: a clock that jumps ahead is not believed for a day.

A host whose clock is a year ahead when it starts, which the network corrects some minutes later, must not remove what
will be a year old only then. A server that was off for long waits for a day as well.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from fedsim.durations import DAY_SECONDS
from fedsim.errors import DamagedFile
from fedsim.log import get_logger
from fedsim.runtime.writer import Writer
from fedsim.spool.sealed import read_sealed, write_sealed


class SteadyClock:
    """Keeps the last time that it believed in the file at `path`, which the writer stores."""

    def __init__(self, path: Path, writer: Writer) -> None:
        self._path, self._writer = path, writer
        self._doubted_since: float | None = None

    def now(self) -> float | None:
        """The time in seconds since the epoch; None while it may be wrong."""
        now, running = time.time(), time.monotonic()
        last = self._read()
        if last is not None and now - last > DAY_SECONDS:
            if self._doubted_since is None:
                self._doubted_since = running
                problem = f"it is {(now - last) / DAY_SECONDS:.1f} days ahead of when this server last ran"
                get_logger().warning("clock_doubted", problem=f"{problem}: nothing is removed by age for a day")
            if running - self._doubted_since < DAY_SECONDS:
                return None
        self._doubted_since = None
        self._writer.submit(partial(write_sealed, self._path, now))
        return now

    def _read(self) -> float | None:
        try:
            last = read_sealed(self._path)
        except DamagedFile as error:
            get_logger().warning("clock_file_damaged", problem=str(error))
            return None
        return None if last is None else float(last)
