"""The base of the two daemons that run tasks: spool, writer, outbox, workers, the data sets of the host.

While the disk is full, files cannot be written or the database is gone, tasks are suspended: their workers end, and
everything is resumed from what is stored as soon as the resource is available again.
"""

from __future__ import annotations

import select
import time
from abc import abstractmethod
from selectors import DefaultSelector
from typing import ClassVar, Final, Literal, TypeVar

from fedsim.config import ClientConfig, ServerConfig
from fedsim.errors import DiskFull, HostTrouble, HostUnavailable, Unavailable, WatchLimit
from fedsim.runtime.daemon import Daemon
from fedsim.runtime.event_loop import EventLoop
from fedsim.runtime.outbox import Outbox
from fedsim.runtime.systemd import extend_timeout
from fedsim.runtime.writer import Writer
from fedsim.spool.files import Kind, Role
from fedsim.spool.host_errors import check_usable, full_disk, host_errors
from fedsim.spool.layout import Arrived, Spool
from fedsim.spool.lock import FolderLock
from fedsim.spool.watch import Watch
from fedsim.wire.peer import Identity, Peer
from fedsim.wire.sender import Outcome
from fedsim.wire.tls import Credentials
from fedsim.wire.transport.receiving import Inbox
from fedsim.worker.forking import ForkServers
from fedsim.worker.inspector import Inspected, InspectionRequest, OwnData
from fedsim.worker.jobs import GuardOrder

TaskConfig = TypeVar("TaskConfig", ServerConfig, ClientConfig)

_TURN_SECONDS: Final = 5.0  # the watchdog's time is longer
_RETRY_SECONDS: Final = 2.0
_MOST_RETRY_SECONDS: Final = 60.0


class TaskDaemon(Daemon[TaskConfig]):
    """Opens what tasks need, waits for events, suspends and resumes all tasks."""

    role: ClassVar[Role]
    # The kinds of files that others send to this host; `files_arrived` gets them.
    received_kinds: ClassVar[tuple[Kind, ...]]
    # Whether the loop continues while tasks are suspended; otherwise it waits for the resource and for nothing else.
    serves_while_suspended: ClassVar[bool]

    # ------------------------------------------------------------ what a daemon implements

    @abstractmethod
    def files_arrived(self, items: list[Arrived]) -> None:
        """Process files that were received."""

    @abstractmethod
    def transfer_ended(self, outcome: Outcome) -> None:
        """Process the end of a transfer to another host."""

    @abstractmethod
    def data_inspected(self, inspected: Inspected) -> None:
        """Take note of which of the host's data sets can be used."""

    @abstractmethod
    def end_turn(self) -> None:
        """Called after the events of each turn."""

    @abstractmethod
    def suspend_tasks(self, error: Unavailable) -> None:
        """End everything that works for tasks, but not the tasks."""

    @abstractmethod
    def resume_tasks(self) -> None:
        """Continue all tasks from what is stored."""

    @abstractmethod
    def peers(self) -> set[Peer]:
        """The receivers of the configured hosts."""

    def inbox(self) -> Inbox | None:
        """Accepts the files that peers offer on the connections of this daemon; None if its receiver gets them all."""
        return None

    @property
    def device(self) -> Literal["auto", "cpu", "cuda"]:
        """The device that this host computes with."""
        return "cpu"

    def next_wake(self) -> float:
        """When the next turn is due at the latest (time.monotonic)."""
        return self.own_data.wake_at

    def require_resources(self) -> None:
        """Raise `Unavailable` if tasks cannot be resumed yet."""
        if isinstance(self.suspended, HostUnavailable):
            full = isinstance(self.suspended, DiskFull)
            folder = self.suspended.folder or self.config.spool
            check_usable(folder, self.config.min_free_bytes if full else 0)
        try:
            self._watch.complete()
        except WatchLimit as error:
            raise HostTrouble(str(error)) from error

    # ------------------------------------------------------------ the loop

    def setup(self) -> None:
        """Open spool, sender and fork servers."""
        config = self.config
        # Why tasks are suspended; None while they run.
        self.suspended: Unavailable | None = None
        self._resumed_at = -_MOST_RETRY_SECONDS
        self._retry_seconds = _RETRY_SECONDS
        self.loop = EventLoop(self.resources.enter_context(DefaultSelector()))
        self.loop.watch(self.wake_fd, self.drain_wake)
        self.writer = self.resources.enter_context(Writer())
        self.loop.watch(self.writer, self.writer.dispatch)
        self.spool = Spool(config.spool).open()
        self.resources.callback(FolderLock(config.spool, f"fedsim-{self.name}", config.spool).close)
        self.spool.checkpoints.mkdir(mode=0o750, exist_ok=True)
        self._watch = Watch(*(self.spool.folder(kind) for kind in self.received_kinds))
        self.resources.callback(self._watch.close)
        self.loop.watch(self._watch, self._files_changed)
        self._identity = Identity(config.name, self.role)
        credentials = self._read_credentials(config)
        self.outbox = Outbox.open(self._identity, credentials, self.spool, self.inbox())
        self.resources.callback(self.outbox.close)
        self.loop.watch(self.outbox, self._transfers_ended)
        self.loop.watch(self.outbox.sent_elsewhere, self._transfers_ended)
        self.fork_servers = ForkServers(self.loop.selector)
        self.resources.callback(self.fork_servers.close)
        self.own_data = OwnData(self.fork_servers, self.data_inspected)
        self.resources.callback(self.own_data.close)
        self._retry = self.loop.timer(self._retry_resume)
        self._warm_timer = self.loop.timer(self._warm_workers)

    def run_once(self) -> None:
        """Wait for events, process them."""
        try:
            with host_errors():
                self.loop.run_once(min(self.next_wake(), time.monotonic() + _TURN_SECONDS))
                self.outbox.check()
                self.own_data.tick()
                self.end_turn()
        except Unavailable as error:
            self.suspend(error)
            self.await_resources()

    def reload(self, config: TaskConfig) -> None:
        """Apply a configuration: credentials, peers and data sets; a running task keeps what it started with."""
        credentials = self._read_credentials(config)
        self.config = config
        self.outbox.reload(credentials, self.peers())
        self.inspect_data()

    def _read_credentials(self, config: TaskConfig) -> Credentials | None:
        credentials = Credentials.of(config.tls, self._identity)
        self.certificate_expires_at = credentials.not_after if credentials else None
        self.metrics.certificate(self.certificate_expires_at)
        return credentials

    def inspect_data(self) -> None:
        """Inspect the host's data sets in a worker; `data_inspected` gets the result."""
        config = self.config
        self.own_data.inspect(InspectionRequest(config.data, tuple(config.datasets), self.device, self.guards))

    @property
    def guards(self) -> dict[str, GuardOrder]:
        """How the guarded data sets are divided, by name; a server has none."""
        return {}

    def warm_soon(self) -> None:
        """Prepare for the first task, once this daemon is ready: import torch where workers are forked."""
        if self.config.warm_worker:
            self._warm_timer.start()

    def _warm_workers(self) -> None:
        if not self.busy:  # its workers have torch, or wait for it
            self.fork_servers.warm(self.config.idle_threads)

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether there are tasks here that have workers, or are about to."""

    def _files_changed(self) -> None:
        try:
            changes = self._watch.drain()
        except WatchLimit as error:
            raise HostTrouble(str(error)) from error
        self.files_arrived(self.spool.among(changes))

    def _transfers_ended(self) -> None:
        for outcome in self.outbox.ended():
            self.transfer_ended(outcome)

    # ------------------------------------------------------------ suspending and resuming

    def suspend(self, error: Unavailable) -> None:
        """Suspend all tasks: something that each of them needs is gone.

        What is gone again soon after it came back is tried less and less often.
        """
        if isinstance(error, DiskFull):
            error = full_disk(error.folder or self.config.spool, self.config.min_free_bytes)
        if str(error) != str(self.suspended or ""):
            self.log.error(error.suspend_reason.value, problem=str(error))
        lasted = time.monotonic() - self._resumed_at >= _MOST_RETRY_SECONDS
        self._retry_seconds = _RETRY_SECONDS if lasted else min(2 * self._retry_seconds, _MOST_RETRY_SECONDS)
        self.suspended = error
        self.suspend_tasks(error)

    def await_resources(self) -> None:
        """Resume the tasks as soon as that is possible; a stop ends the wait."""
        if self.serves_while_suspended:
            self._retry.start(self._retry_seconds)
            return
        while not self.stopping and not self._resume():
            # Only signals wake: files that arrive meanwhile are found in their folders afterwards.
            extend_timeout()
            if select.select([self.wake_fd], [], [], min(self._retry_seconds, _TURN_SECONDS))[0]:
                self.drain_wake()

    def _retry_resume(self) -> None:
        if not self._resume():
            self._retry.start(self._retry_seconds)

    def _resume(self) -> bool:
        try:
            self.require_resources()
        except Unavailable as error:
            self.publish_status(str(error))
            return False
        if self.suspended is not None:
            self.log.info("tasks_resumed", after=str(self.suspended))
            self._resumed_at = time.monotonic()
        self.suspended = None
        self.writer.drain()
        try:
            with host_errors():
                self.resume_tasks()
        except Unavailable as error:
            self.suspend(error)
            return False
        return True
