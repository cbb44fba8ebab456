"""The few threads that all connections share: epoll, a timer heap, and actors that are never handled twice at a time.

Leader and followers (Schmidt et al., 2000): one thread waits in epoll, the others wait to replace it; the thread that
gets an event hands over to the next and handles the event itself. So an event never changes threads, idle connections
need none, and a call that blocks in one connection does not stall the others.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

BUFFER_BYTES: Final = 1 << 20
_MOST_EVENTS: Final = 64

Job = Callable[[], None]


class Mailbox:
    """Jobs that any thread posts to an actor, for the actor to run in its turn."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._jobs: deque[Job] = deque()

    def post(self, job: Job) -> None:
        """Run `job` in the actor's next turn; from any thread."""
        self._jobs.append(job)
        self._wake()

    def deliver(self) -> None:
        """Run what was posted; called by the actor."""
        while self._jobs:
            self._jobs.popleft()()


class Actor(Protocol):
    """Something with a socket, a deadline, or both. The reactor calls it from one thread at a time."""

    @property
    def deadline(self) -> float | None:
        """When it must be handled at the latest (time.monotonic), if ever."""

    def interest(self) -> tuple[int, int]:
        """Its descriptor (-1: none) and the epoll events it waits for."""

    def handle(self, events: int) -> bool:
        """Do what is possible without waiting; True to be handled again as soon as others had their turn."""


@dataclass
class _State:
    busy: bool = False
    again: int | None = None
    descriptor: int = -1
    timer: float | None = None


class Reactor:
    """Runs actors, and jobs that may block for a while (fsync), on a fixed number of threads."""

    def __init__(self, name: str, threads: int) -> None:
        self._kick = -1
        self._kick_lock = threading.Lock()
        self._lock = threading.Lock()
        self._leader = threading.Lock()
        self._states: dict[Actor, _State] = {}
        self._by_descriptor: dict[int, Actor] = {}
        self._ready: deque[tuple[Actor, int]] = deque()
        self._jobs: deque[Job] = deque()
        self._running_jobs = 0
        # With several threads, one is always left for the connections.
        self._most_jobs = max(1, threads - 1)
        self._timers: list[tuple[float, int, Actor]] = []
        self._sequence = itertools.count()
        self._closing = False
        self._local = threading.local()
        self.failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        self._epoll = select.epoll()
        self._kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._kick, select.EPOLLIN)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop; called from another thread. What runs is finished, what waits is not started."""
        if self._kick < 0:
            return  # it was not started
        self._closing = True
        self._wake_leader()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._epoll.close()
        with self._kick_lock:
            os.close(self._kick)
            self._kick = -1

    @property
    def buffer(self) -> memoryview:
        """A buffer of this thread, free to use until the handling of the present event ends."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = memoryview(bytearray(BUFFER_BYTES))
        view: memoryview = self._local.buffer
        return view

    def add(self, actor: Actor) -> None:
        """Handle `actor` from now on, the first time at once."""
        with self._lock:
            self._states[actor] = _State()
            self._schedule(actor, 0)
        self._wake_leader()

    def remove(self, actor: Actor) -> None:
        """Forget an actor; it closes its own descriptor."""
        with self._lock:
            state = self._states.pop(actor, None)
            if state is not None:
                self._disarm(actor, state)

    def wake(self, actor: Actor) -> None:
        """Handle `actor` soon (again, if it is being handled now). From any thread; does nothing once it is removed."""
        with self._lock:
            self._schedule(actor, 0)
        self._wake_leader()

    def run(self, job: Job) -> None:
        """Run a job that may block for a while, on one of the threads."""
        with self._lock:
            self._jobs.append(job)
        self._wake_leader()

    def _wake_leader(self) -> None:
        with self._kick_lock:
            if self._kick >= 0:
                os.eventfd_write(self._kick, 1)

    def _schedule(self, actor: Actor, events: int) -> None:
        state = self._states.get(actor)
        if state is None:
            return
        if state.busy:
            state.again = (state.again or 0) | events
        else:
            state.busy = True
            self._ready.append((actor, events))

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                job()
        except BaseException as error:
            self.failure = error
            self._closing = True
            self._wake_leader()
            raise

    def _next(self) -> Job | None:
        """Wait, as the leader, for something to do."""
        with self._leader:
            while True:
                with self._lock:
                    if self._closing:
                        self._wake_leader()  # the next thread must notice it as well
                        return None
                    if self._jobs and self._running_jobs < self._most_jobs:
                        self._running_jobs += 1
                        job = self._jobs.popleft()
                        return lambda: self._run_job(job)
                    if self._ready:
                        actor, events = self._ready.popleft()
                        return lambda: self._handle(actor, events)
                    timeout = self._seconds_to_timer()
                found = self._epoll.poll(timeout, _MOST_EVENTS)
                with self._lock:
                    self._collect(found)

    def _collect(self, found: list[tuple[int, int]]) -> None:
        for descriptor, events in found:
            if descriptor == self._kick:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._kick)
            elif descriptor in self._by_descriptor:
                self._schedule(self._by_descriptor[descriptor], events)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            due, _, actor = heapq.heappop(self._timers)
            state = self._states.get(actor)
            if state is None or state.timer != due:
                continue
            state.timer = None
            self._schedule(actor, 0)

    def _seconds_to_timer(self) -> float:
        # Rounded up to whole milliseconds by epoll, so a timer is never early.
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1

    def _run_job(self, job: Job) -> None:
        job()
        with self._lock:
            self._running_jobs -= 1
        self._wake_leader()

    def _handle(self, actor: Actor, events: int) -> None:
        more = actor.handle(events)
        with self._lock:
            state = self._states.get(actor)
            if state is None:
                return
            state.busy = False
            if more or state.again is not None:
                again, state.again = state.again or 0, None
                self._schedule(actor, again)
                self._wake_leader()
            else:
                self._arm(actor, state)

    def _arm(self, actor: Actor, state: _State) -> None:
        descriptor, events = actor.interest()
        if descriptor != state.descriptor:
            self._disarm(actor, state)
        if descriptor >= 0:
            mask = events | select.EPOLLONESHOT
            try:
                self._epoll.modify(descriptor, mask)
            except FileNotFoundError:
                self._epoll.register(descriptor, mask)
            state.descriptor = descriptor
            self._by_descriptor[descriptor] = actor
        due = actor.deadline
        # A timer that fires too early costs one call; so an existing one is not moved for every byte.
        if due is not None and (state.timer is None or due < state.timer):
            state.timer = due
            first = not self._timers or due < self._timers[0][0]
            heapq.heappush(self._timers, (due, next(self._sequence), actor))
            if first:
                self._wake_leader()

    def _disarm(self, actor: Actor, state: _State) -> None:
        if self._by_descriptor.get(state.descriptor) is actor:
            del self._by_descriptor[state.descriptor]
            with suppress(OSError):  # the actor has closed it, which removed it from the epoll set
                self._epoll.unregister(state.descriptor)
        state.descriptor = -1
