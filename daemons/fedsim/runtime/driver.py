"""The driver of one task: passes events to the task's state machine, and carries out the actions that it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from fedsim.errors import DiskFull, HostTrouble, SuspendReason, Unavailable
from fedsim.runtime.bulkhead import Restarts, bulkhead
from fedsim.runtime.outbox import Outbox
from fedsim.runtime.telemetry import TaskTelemetry
from fedsim.runtime.writer import Writer
from fedsim.state_machines.action_queue import ActionQueue
from fedsim.state_machines.suspension import Suspended
from fedsim.worker import jobs
from fedsim.worker.pool import WorkerPool

Event = TypeVar("Event")
Action = TypeVar("Action")
Result = TypeVar("Result")
P = ParamSpec("P")


Driver = TypeVar("Driver", bound="TaskDriver[Any, Any]")


def contained(method: Callable[Concatenate[Driver, P], None]) -> Callable[Concatenate[Driver, P], None]:
    """A method that the daemon calls: an exception in it interrupts or fails the driver's task, and is not raised."""

    @wraps(method)
    def call(driver: Driver, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if driver.abandoned or driver.interrupted:
            return
        with bulkhead(driver.give_up), bulkhead(driver.fail, driver.unexpected):
            method(driver, *args, **kwargs)

    return call


class TaskDriver(ABC, Generic[Event, Action]):
    """A running task; decides nothing. The methods that the daemon calls are `contained`.

    An unexpected exception interrupts the task: another object resumes it from what is stored, as after a restart of
    the daemon. A second one fails it, if no round was completed in between. Should failing the task raise as well, the
    driver abandons it: workers and transfers end, and nothing more is done.

    Attributes:
        interrupted: the exception that interrupted it; empty if none has.
    """

    def __init__(self, uid: str, telemetry: TaskTelemetry, outbox: Outbox, writer: Writer, restarts: Restarts) -> None:
        self.uid = uid
        self.abandoned = False
        self.interrupted = ""
        self._restarts = restarts
        self.suspended: SuspendReason | None = None
        self._pool: WorkerPool | None = None
        self._log = telemetry.log
        self._task_telemetry = telemetry
        self._outbox = outbox
        self._writer = writer
        self._queue: ActionQueue[Action] = ActionQueue(self.carry_out)

    # ------------------------------------------------------------ what differs between server and node

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether the task is over here, and nothing of it is left to do."""

    @property
    @abstractmethod
    def decided(self) -> bool:
        """Whether the state machine has ended the task, which may still have to be carried out."""

    @property
    @abstractmethod
    def progress(self) -> int:
        """The round that the task has reached."""

    @abstractmethod
    def handle(self, event: Event | Suspended) -> list[Action]:
        """The state machine's answer to an event."""

    @abstractmethod
    def carry_out(self, action: Action) -> None:
        """Carry out one action."""

    @abstractmethod
    def worker_replied(self, reply: jobs.Reply) -> None:
        """Process what a worker has done."""

    @abstractmethod
    def failure(self, reason: str) -> Event:
        """The event that the task cannot continue here."""

    def record_versions(self) -> None:
        """Record the versions of the pool's workers."""

    # ------------------------------------------------------------ events and actions

    def dispatch(self, event: Event | Suspended) -> None:
        """Pass an event to the state machine in its turn, and carry out the actions in order."""
        self.in_turn(lambda: self.handle(event))

    def in_turn(self, step: Callable[[], Iterable[Action] | None]) -> None:
        """Call `step` after what is under way, unless the task has ended by then; carry out the actions it returns."""
        self._queue.add(lambda: () if self.ended else step() or ())

    def fail(self, reason: str) -> None:
        """End the task as failed; abandon it if its end itself fails."""
        if not self.decided:
            self._queue.add_first(lambda: self.handle(self.failure(reason)))
        elif not self.ended:
            self.give_up(reason)

    def unexpected(self, reason: str) -> None:
        """Interrupt the task, to be resumed from disk; fail it if that was tried before in this round."""
        if self.decided or not self._restarts.allow(self.uid, self.progress):
            self.fail(reason)
            return
        self._log.error("task_interrupted", problem=reason)
        self.interrupted = reason
        self._queue = ActionQueue(self.carry_out)  # without what waits for a write
        self.quit()

    def give_up(self, reason: str) -> None:
        """Abandon the task: it could not even be failed."""
        self._log.error("task_abandoned", problem=reason)
        self.abandoned = True
        self.quit()

    def suspend(self, error: Unavailable) -> None:
        """End workers and transfers, but not the task: another object resumes it, from what is stored by then."""
        self.suspended = error.suspend_reason
        self._queue = ActionQueue(self.carry_out)  # without what waits for a write
        self.dispatch(Suspended(error.suspend_reason))
        self.quit()

    def quit(self) -> None:
        """End workers and transfers."""
        self.end_workers()
        self._outbox.cancel(lambda file: file.task == self.uid)
        self._task_telemetry.stopped()

    # ------------------------------------------------------------ what is stored

    def write(
        self, job: Callable[[], Result], then: Callable[[Result], Iterable[Action] | None] = lambda _: None
    ) -> None:
        """Store something durably in the writer's thread; all events and actions wait until it is.

        Args:
            job: stores it; should use nothing that changes meanwhile.
            then: is called in the loop with what `job` returned; the actions that it returns come next.
        """
        queue = self._queue
        queue.hold()
        self._writer.submit(job, lambda future: self._written(queue, future, then))

    def write_behind(self, job: Callable[[], object]) -> None:
        """Store or clear something in the writer's thread, after what was submitted before; nothing waits for it."""
        queue = self._queue
        self._writer.submit(job, lambda future: self._written_behind(queue, future))

    @contained
    def _written(
        self, queue: ActionQueue[Action], future: Future[Result], then: Callable[[Result], Iterable[Action] | None]
    ) -> None:
        if queue is self._queue:  # not suspended since
            queue.release(lambda: then(future.result()) or ())

    @contained
    def _written_behind(self, queue: ActionQueue[Action], future: Future[Any]) -> None:
        if queue is self._queue:
            future.result()

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
            if isinstance(reply, jobs.JobFailed) and reply.suspends is not None:
                kind = DiskFull if reply.suspends is SuspendReason.DISK_FULL else HostTrouble
                raise kind(reply.reason, reply.folder)
            self._reply_in_turn(reply)
        if broken is not None:
            self.fail(broken)

    def _reply_in_turn(self, reply: jobs.Reply) -> None:
        self.in_turn(lambda: self.worker_replied(reply))
