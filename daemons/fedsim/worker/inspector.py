"""A host's own data sets: inspected when the daemon starts, and again when their folder changes.

A worker inspects one data set after another, and ends. If a data set makes it fail or die, that concerns this data set
alone.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from selectors import EVENT_READ
from typing import Literal

from fedsim.config import DataSetConfig
from fedsim.errors import WatchLimit
from fedsim.log import get_logger
from fedsim.messages import DataSetInfo
from fedsim.spool.watch import Changes, Watch
from fedsim.worker.forking import ForkServers
from fedsim.worker.jobs import DataSetInspected, GuardOrder, HostInspected, Inspect, InspectHost, JobFailed, Reply
from fedsim.worker.process import WorkerProcess

# Data is copied in many steps: inspect when nothing has changed for a moment, but do not wait indefinitely.
SETTLE_SECONDS = 1.0
MOST_SETTLE_SECONDS = 10.0


@dataclass(frozen=True)
class InspectionRequest:
    """What is to be inspected."""

    folder: Path
    datasets: tuple[DataSetConfig, ...]
    device: Literal["auto", "cpu", "cuda"]
    guards: Mapping[str, GuardOrder] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspected:
    """The result: data sets that can be used, why others (by name) cannot, and what the host computes with."""

    datasets: tuple[DataSetInfo, ...] = ()
    unusable: Mapping[str, str] = field(default_factory=dict)
    device: Literal["cpu", "cuda"] = "cpu"
    processor: str = ""
    torch: str = ""

    @property
    def problems(self) -> tuple[str, ...]:
        """Why data sets cannot be used, in sentences."""
        names: dict[str, list[str]] = defaultdict(list)
        for name, reason in self.unusable.items():
            names[reason].append(name)
        return tuple(f"data set {', '.join(those)}: {reason}" for reason, those in names.items())


class _Inspection:
    """One inspection of everything, in a worker that is started again if a data set kills it."""

    def __init__(self, request: InspectionRequest, servers: ForkServers, on_ready: Callable[[], None]) -> None:
        self._servers = servers
        self._on_ready = on_ready
        self._jobs: deque[InspectHost | Inspect] = deque([InspectHost(device=request.device)])
        for dataset in request.datasets:
            self._jobs.append(Inspect(folder=request.folder, dataset=dataset, guard=request.guards.get(dataset.name)))
        self._host: HostInspected | None = None
        self._datasets: list[DataSetInfo] = []
        self._unusable: dict[str, str] = {}
        self._process: WorkerProcess | None = self._start()

    def result(self) -> Inspected | None:
        """The result, or None as long as the inspection is under way."""
        replies, ended = self._process.replies() if self._process is not None else ([], None)
        for reply in replies:
            self._note(reply)
        if ended is not None and self._jobs:
            self.close()
            self._note(JobFailed(job=self._jobs[0].job, reason=f"the worker that inspected it {ended}"))
            if self._jobs:
                self._process = self._start()
        if self._jobs:
            return None
        if self._host is None:
            return Inspected(unusable=self._unusable)
        host = self._host
        return Inspected(tuple(self._datasets), self._unusable, host.device, host.processor, host.torch)

    def close(self) -> None:
        """End the worker."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _start(self) -> WorkerProcess:
        process = WorkerProcess(self._servers, self._on_ready, threads=None, learns=False)
        for job in self._jobs:
            process.submit(job)
        return process

    def _note(self, reply: Reply) -> None:
        if not self._jobs:
            return
        job = self._jobs.popleft()
        match reply, job:
            case HostInspected(), _:
                self._host = reply
            case DataSetInspected(dataset=dataset), _:
                self._datasets.append(dataset)
            case JobFailed(reason=reason), Inspect(dataset=dataset):
                self._unusable[dataset.name] = reason.removeprefix(f"data set {dataset.name}: ")
            case JobFailed(reason=reason), InspectHost():
                self._unusable = {job.dataset.name: reason for job in self._jobs if isinstance(job, Inspect)}
                self._jobs.clear()


class OwnData:
    """Inspects data sets; `on_seen` gets the result. The daemon's loop calls `tick` when `wake_at` has come."""

    def __init__(self, servers: ForkServers, on_seen: Callable[[Inspected], None]) -> None:
        self._servers = servers
        self._selector = servers.selector
        self._on_seen = on_seen
        self._request: InspectionRequest | None = None
        self._inspection: _Inspection | None = None
        self._watch: Watch | None = None
        self._unwatched = ""
        self._changed: set[Path] = set()
        self._changed_at = inf
        self._due = inf
        self._log = get_logger()

    @property
    def wake_at(self) -> float:
        """When the next inspection is due (time.monotonic); one that is under way is finished first."""
        return inf if self._inspection is not None else self._due

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on the last inspection, in sentences: files that changed since, a folder that cannot be watched."""
        remarks = [self._unwatched] if self._unwatched else []
        if self._changed:
            some = ", ".join(str(path) for path in sorted(self._changed)[:3])
            more = f" and {len(self._changed) - 3} more" if len(self._changed) > 3 else ""
            remarks.append(
                f"{some}{more} changed since the data sets were inspected: what is known of them may be out of date; "
                "they are inspected again"
            )
        return tuple(remarks)

    def inspect(self, request: InspectionRequest) -> None:
        """Inspect at once, and from now on when the folder changes."""
        if self._inspection is not None and request != self._request:
            self._end_inspection()
        self._request = request
        self._watch_folder(request.folder if request.datasets else None)
        self._due = 0.0
        self.tick()

    def tick(self) -> None:
        """Inspect if it is due."""
        if time.monotonic() < self.wake_at or self._request is None:
            return
        self._changed.clear()
        self._changed_at = self._due = inf
        if self._request.datasets:
            self._inspection = _Inspection(self._request, self._servers, self._worker_ready)
        else:
            self._on_seen(Inspected())

    def close(self) -> None:
        """End the worker, if there is one, and watch no more."""
        self._end_inspection()
        self._watch_folder(None)

    # ------------------------------------------------------------ events

    def _worker_ready(self) -> None:
        inspected = self._inspection.result() if self._inspection is not None else None
        if inspected is None:
            return
        self._end_inspection()
        for problem in inspected.problems:
            self._log.warning("data_set_unusable", problem=problem)
        self._on_seen(inspected)

    def _end_inspection(self) -> None:
        if self._inspection is not None:
            self._inspection.close()
            self._inspection = None

    def _watch_folder(self, folder: Path | None) -> None:
        """Watch this folder alone. One that cannot be watched can still be used."""
        if self._watch is not None:
            self._selector.unregister(self._watch)
            self._watch.close()
            self._watch = None
        self._unwatched = ""
        if folder is not None:
            try:
                self._watch = Watch(folder, written=True)
            except WatchLimit as error:
                self._cannot_watch(error)
            else:
                self._selector.register(self._watch, EVENT_READ, self._folder_changed)

    def _cannot_watch(self, error: WatchLimit) -> None:
        self._unwatched = f"changes of the data are seen only at a reload or restart: {error}"
        self._log.error("data_not_watched", problem=str(error))

    def _folder_changed(self) -> None:
        if self._watch is None:
            return
        try:
            changes = self._watch.drain()
        except WatchLimit as error:
            changes = Changes()
            self._watch_folder(None)
            self._cannot_watch(error)
            self._due = 0.0
        if changed := changes.files | changes.folders:
            now = time.monotonic()
            self._changed |= changed
            self._changed_at = min(self._changed_at, now)
            self._due = min(now + SETTLE_SECONDS, self._changed_at + MOST_SETTLE_SECONDS)
