"""Looking at data sets takes torch and time: a worker does it, and is gone afterwards."""

from __future__ import annotations

from collections.abc import Callable
from selectors import EVENT_READ, BaseSelector

from fedsim.log import get_logger
from fedsim.worker.jobs import Inspect, Inspected, JobFailed
from fedsim.worker.process import WorkerGone, WorkerProcess


class Inspector:
    """Looks at data sets on demand; `on_inspected` is told what there is."""

    def __init__(self, selector: BaseSelector, on_inspected: Callable[[Inspected], None]) -> None:
        self._selector = selector
        self._on_inspected = on_inspected
        self._process: WorkerProcess | None = None
        self._job: Inspect | None = None
        self._log = get_logger()

    def look(self, job: Inspect) -> None:
        """Begin to look; a look that is under way is given up."""
        self.close()
        self._job = job
        self._process = WorkerProcess(threads=1)
        self._selector.register(self._process, EVENT_READ, self._ready)
        self._process.give(job)

    def close(self) -> None:
        """End the worker, if there is one."""
        if self._process is not None:
            self._selector.unregister(self._process)
            self._process.close()
            self._process = None

    def _ready(self) -> None:
        if self._process is None or self._job is None:
            return
        try:
            replies = self._process.replies()
        except WorkerGone as gone:
            replies = [JobFailed(job="inspect", reason=f"the worker {gone}")]
        for reply in replies:
            self.close()
            match reply:
                case Inspected():
                    self._tell(reply)
                case JobFailed(reason=reason):
                    names = ", ".join(dataset.name for dataset in self._job.datasets)
                    problem = f"the data sets {names} could not be looked at: {reason}"
                    self._tell(Inspected(datasets=(), problems=(problem,), device="cpu", processor="", torch=""))

    def _tell(self, inspected: Inspected) -> None:
        for problem in inspected.problems:
            self._log.warning("data_set_unusable", problem=problem)
        self._on_inspected(inspected)
