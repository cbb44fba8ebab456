"""The workers of one task on one host, each with its jobs in order.

A worker that dies is started anew with the jobs that it had not done; if it keeps dying, that breaks the task alone.
Only deaths with a job count, and only in a row: a worker that was idle is not to blame for its end, and a job that is
done shows that the ones before it had another cause.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from fedsim.errors import HostTrouble
from fedsim.log import get_logger
from fedsim.worker.forking import ForkServers
from fedsim.worker.interpreters import interpreter_of
from fedsim.worker.jobs import Job, Reply
from fedsim.worker.process import WorkerProcess


@dataclass
class _Slot:
    name: str
    # None: it died without a job, and is started with its next one.
    process: WorkerProcess | None
    jobs: deque[Job] = field(default_factory=deque)
    deaths: int = 0


class WorkerPool:
    """Named workers; jobs are submitted to one of them, or to one that is idle."""

    def __init__(
        self,
        names: Sequence[str],
        servers: ForkServers,
        on_ready: Callable[[], None],
        *,
        threads: int,
        max_restarts: int,
        log: Mapping[str, Any],
        version: str,
        on_death: Callable[[], None],
        first: Job | None = None,
    ) -> None:
        """`start` starts the workers.

        Args:
            names: what they are called in the log.
            servers: the daemon's; their selector calls `on_ready` when a worker has answered or died.
            on_ready: should call `replies`.
            threads: that each computes with.
            max_restarts: how often in a row a worker may die in a job without completing one.
            log: default fields of the events about and of a worker: the task's number.
            version: of fedsim, under which the task began; its workers are of that version wherever it is installed.
            on_death: called for each worker that died.
            first: what each worker does first, also after it was started anew.
        """
        self._servers = servers
        self._on_ready = on_ready
        self._threads = threads
        self._max_restarts = max_restarts
        self._first = first
        self._version = version
        self._on_death = on_death
        self._fields = dict(log)
        self._log = get_logger(**log)
        # Of the workers that were started so far.
        self.versions: set[str] = set()
        self._names = tuple(names)
        self._slots: list[_Slot] = []

    def start(self) -> Self:
        """Start the workers."""
        self._slots = [_Slot(name, None) for name in self._names]
        for slot in self._slots:
            self._restart(slot)
        return self

    @property
    def idle(self) -> int:
        """How many workers have nothing to do."""
        return sum(not slot.jobs for slot in self._slots)

    @property
    def deaths(self) -> int:
        """How often in a row one of the workers has died in a job."""
        return max((slot.deaths for slot in self._slots), default=0)

    def submit(self, job: Job, name: str | None = None) -> None:
        """Hand a job to the worker of this name; else to the one with the least to do."""
        slots = [slot for slot in self._slots if name in (None, slot.name)]
        slot = min(slots, key=lambda slot: len(slot.jobs))
        slot.jobs.append(job)
        if slot.process is None:
            self._restart(slot)
        else:
            slot.process.submit(job)

    def replies(self) -> tuple[list[Reply], str | None]:
        """The replies, and why the task cannot continue if a worker died too often."""
        replies: list[Reply] = []
        for slot in self._slots:
            if slot.process is None:
                continue
            come, ended = slot.process.replies()
            for reply in come:
                if slot.jobs.popleft() is not self._first:
                    slot.deaths = 0
                replies.append(reply)
            if ended is None:
                continue
            if not slot.process.started:
                raise HostTrouble(f"the worker {slot.name} {ended}: this host is at a limit of processes or memory")
            slot.deaths += bool(slot.jobs)
            self._on_death()
            self._log.warning("worker_died", worker=slot.name, how=ended, deaths=slot.deaths)
            if slot.deaths > self._max_restarts:
                times = f"{slot.deaths} times in a row" if slot.deaths > 1 else "once"
                return replies, f"the worker {slot.name} {ended}, {times}: see this host's journal"
            slot.process.close()
            slot.process = None
            if slot.jobs or self._first is not None:
                self._restart(slot)
        return replies, None

    def close(self) -> None:
        """Kill all of them."""
        for slot in self._slots:
            if slot.process is not None:
                slot.process.close()
        self._slots.clear()

    def _restart(self, slot: _Slot) -> None:
        """Start a slot's worker with the jobs that are not done."""
        interpreter = interpreter_of(self._version)
        self.versions.add(interpreter.version)
        process = slot.process = WorkerProcess(
            self._servers,
            self._on_ready,
            threads=self._threads,
            learns=True,
            python=interpreter.python,
            log=self._fields,
        )
        if self._first is not None and (not slot.jobs or slot.jobs[0] is not self._first):
            slot.jobs.appendleft(self._first)
        for job in slot.jobs:
            process.submit(job)
