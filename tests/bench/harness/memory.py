"""The memory of processes while they work: proportional set size and anonymous memory, sampled from /proc."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from operator import add
from pathlib import Path
from typing import Self

import psutil

INTERVAL_SECONDS = 0.1
GONE = (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess)


@dataclass(frozen=True)
class Usage:
    """Bytes of a process, or of several together.

    Attributes:
        pss: the proportional set size, in which a page that several processes share counts in shares.
        anonymous: the part of it that no file backs.
        whole_anonymous: the same with shared pages in full, as those that a forked worker has from its fork server.
    """

    pss: int = 0
    anonymous: int = 0
    whole_anonymous: int = 0

    def __add__(self, other: Usage) -> Usage:
        return self._each(other, add)

    def largest(self, other: Usage) -> Usage:
        """The larger of each."""
        return self._each(other, max)

    def _each(self, other: Usage, combine: Callable[[int, int], int]) -> Usage:
        return Usage(*(combine(getattr(self, one.name), getattr(other, one.name)) for one in fields(Usage)))


def usage(pid: int) -> Usage:
    """The memory of a process now; zeros if it is gone."""
    found = {"Pss": 0, "Pss_Anon": 0, "Anonymous": 0}
    with suppress(*GONE):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = int(rest.split()[0]) * 1024
    return Usage(found["Pss"], found["Pss_Anon"], found["Anonymous"])


def tree(pids: Mapping[str, int]) -> dict[str, list[int]]:
    """Processes by name; what a process has started, its workers, is `<name> workers`."""
    groups: dict[str, list[int]] = {}
    for name, pid in pids.items():
        groups[name] = [pid]
        with suppress(*GONE):
            groups[f"{name} workers"] = [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return groups


class MemoryWatch:
    """Samples groups of processes in a thread; `peaks` are the largest sums of each group.

    Shared anonymous pages, as those of a forked worker, count in shares (`Pss_Anon`), so that sums are right.

    Args:
        groups: returns the processes of each group, called for each sample.
        interval: seconds between two samples.
    """

    def __init__(self, groups: Callable[[], Mapping[str, list[int]]], interval: float = INTERVAL_SECONDS) -> None:
        self._groups = groups
        self._interval = interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-watch")
        self.first: dict[str, Usage] = {}
        self.peaks: dict[str, Usage] = {}
        self.peak_of_all = Usage()
        self.process_peaks: dict[str, dict[int, Usage]] = defaultdict(dict)

    def sample(self) -> None:
        """Take one sample."""
        total = Usage()
        for name, pids in self._groups().items():
            together = Usage()
            for pid in pids:
                found = usage(pid)
                known = self.process_peaks[name].get(pid, Usage())
                self.process_peaks[name][pid] = known.largest(found)
                together += found
            self.first.setdefault(name, together)
            self.peaks[name] = self.peaks.get(name, Usage()).largest(together)
            total += together
        self.peak_of_all = self.peak_of_all.largest(total)

    def growth(self, name: str) -> int:
        """By how many bytes the anonymous memory of a group grew beyond the first sample."""
        return self.peaks[name].anonymous - self.first[name].anonymous

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self.sample()

    def __enter__(self) -> Self:
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.sample()
