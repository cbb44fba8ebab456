"""The driver of one task: passes events to the task's state machine, and carries out the actions that it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from fedsim.errors import DiskFull
from fedsim.runtime.bulkhead import bulkhead
from fedsim.runtime.telemetry import TaskTelemetry
from fedsim.worker import jobs
from fedsim.worker.pool import WorkerPool

Event = TypeVar("Event")
Action = TypeVar("Action")
P = ParamSpec("P")


Driver = TypeVar("Driver", bound="TaskDriver[Any, Any]")


def contained(method: Callable[Concatenate[Driver, P], None]) -> Callable[Concatenate[Driver, P], None]:
    """A method that the daemon calls: an exception in it fails the driver's task, and is not raised."""

    @wraps(method)
    def call(driver: Driver, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if driver.abandoned:
            return
        with bulkhead(driver.give_up), bulkhead(driver.fail):
            method(driver, *args, **kwargs)

    return call


class TaskDriver(ABC, Generic[Event, Action]):
    """A running task; decides nothing. The methods that the daemon calls are `contained`.

    Should failing the task raise as well, the driver abandons it: workers and transfers end, and nothing more is done.
    """

    def __init__(self, telemetry: TaskTelemetry) -> None:
        self.abandoned = False
        self._pool: WorkerPool | None = None
        self._log = telemetry.log

    # ------------------------------------------------------------ what differs between server and node

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether the task is over here."""

    @abstractmethod
    def handle(self, event: Event) -> list[Action]:
        """The state machine's answer to an event."""

    @abstractmethod
    def carry_out(self, action: Action) -> None:
        """Carry out one action."""

    @abstractmethod
    def worker_replied(self, reply: jobs.Reply) -> None:
        """Process what a worker has done."""

    @abstractmethod
    def fail(self, reason: str) -> None:
        """Dispatch that the task cannot continue here."""

    @abstractmethod
    def suspend(self) -> None:
        """End workers and transfers, but not the task: it is resumed later."""

    def record_versions(self) -> None:
        """Record the versions of the pool's workers."""

    # ------------------------------------------------------------ events and actions

    def dispatch(self, event: Event) -> None:
        """Pass an event to the state machine and carry out its actions, in order."""
        if not self.ended:
            self.carry_out_all(self.handle(event))

    def carry_out_all(self, actions: list[Action]) -> None:
        """Carry out actions in order."""
        for action in actions:
            self.carry_out(action)

    def give_up(self, reason: str) -> None:
        """Abandon the task: it could not even be failed."""
        self._log.error("task_abandoned", problem=reason)
        self.abandoned = True
        self.suspend()

    # ------------------------------------------------------------ workers

    def submit(self, job: jobs.Job, worker: str | None = None) -> None:
        """Hand a job to a worker, unless the workers have ended."""
        if self._pool is not None:
            self._pool.submit(job, worker)

    def end_workers(self) -> None:
        """Kill the workers, if there are any."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    @contained
    def workers_ready(self) -> None:
        """Process the replies and deaths of workers."""
        if self._pool is None:
            return
        replies, broken = self._pool.replies()
        self.record_versions()
        for reply in replies:
            if isinstance(reply, jobs.JobFailed) and reply.disk_full:
                raise DiskFull(reply.reason)
            if not self.ended:  # an earlier reply may have ended the task
                self.worker_replied(reply)
        if broken is not None:
            self.fail(broken)
