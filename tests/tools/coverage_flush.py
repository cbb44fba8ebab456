"""A plug-in of coverage.py for `make coverage`: writes what was measured several times a second.

Workers never end by themselves: their daemon kills them, and coverage.py writes only at a process's end.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import Any

import coverage

SECONDS = 0.25


def flush() -> None:
    """Write until the process ends."""
    while True:
        time.sleep(SECONDS)
        measuring = coverage.Coverage.current()
        if measuring is not None:
            with suppress(Exception):  # a process that is ending must end as without this thread
                measuring.save()


def start() -> None:
    """Begin to write, in this process."""
    threading.Thread(target=flush, name="coverage-flush", daemon=True).start()


def coverage_init(_registry: Any, _options: dict[str, Any]) -> None:
    """Called by coverage.py in every process that it measures.

    Only forks write: a fork server must have neither a further thread nor an open database while it forks.
    """
    if "fedsim.worker" in _arguments():
        os.register_at_fork(after_in_child=start)


def _arguments() -> list[str]:
    with open("/proc/self/cmdline", encoding="utf-8") as file:  # noqa: PTH123 - sys.argv is not set yet
        return file.read().split("\0")
