"""The daemon's side of a worker: have it forked, give it jobs, notice its end, kill it for certain.

A worker never outlives its daemon and is reached by pidfd, so that a reused pid can never be hit. Only `close`
blocks, and it kills the worker first.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from fedsim.worker.forking import ForkServers
from fedsim.worker.jobs import Job, Reply, encode_job, read_reply


class WorkerProcess:
    """One worker. The selector calls `on_ready` when a reply has come or the process has ended: then ask `replies`."""

    def __init__(
        self,
        servers: ForkServers,
        on_ready: Callable[[], None],
        *,
        threads: int | None,
        learns: bool,
        python: Path | None = None,
        log: Mapping[str, Any] | None = None,
    ) -> None:
        """Have a process forked.

        Args:
            servers: the daemon's.
            on_ready: called by their selector.
            threads: with which it computes; None: it computes nothing.
            learns: whether its jobs need torch; one that only inspects a host and its data starts without.
            python: the interpreter; None: this process's.
            log: default fields of the events that it logs.
        """
        self.pid: int | None = None
        self._pidfd: int | None = None
        self._ended: str | None = None
        self.started = True
        self._closed = False
        self._selector = servers.selector
        self._on_ready = on_ready
        self._unsent = bytearray()
        self._received = bytearray()
        fields = {"identifier": Path(sys.argv[0]).name, **(log or {})}
        self._socket, theirs = socket.socketpair()
        with theirs:
            servers.of(threads, python).fork(theirs, self, learns=learns, log=fields)
        self._socket.setblocking(False)
        self._connected = True
        self._selector.register(self._socket, EVENT_READ, on_ready)

    def began(self, pid: int, pidfd: int) -> None:
        """Called by the fork server."""
        self.pid, self._pidfd = pid, pidfd
        if self._closed:
            self._end()
        else:
            self._send()

    def not_started(self, problem: str) -> None:
        """Called by the fork server: this host has no room for one more process."""
        self.started = False
        self.ended(problem)

    def ended(self, how: str) -> None:
        """Called by the fork server; `replies` returns it after the last reply."""
        self._ended = how
        if not self._closed:
            self._on_ready()

    def submit(self, job: Job) -> None:
        """Hand over a job; jobs are done in order. What the worker does not take yet is sent when it does.

        Nothing is sent before the worker has started, so that one that is closed earlier does nothing.
        """
        self._unsent += encode_job(job)
        self._send()

    def replies(self) -> tuple[list[Reply], str | None]:
        """The replies that have come; and how the process ended, if it has: then there are no more."""
        ended = self._ended  # before looking: what it said before its end is then all there
        self._send()
        self._receive()
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        return [read_reply(bytes(line)) for line in lines], ended

    def close(self) -> None:
        """Kill the process and free its resources; it has ended on return, or ends as soon as it has started."""
        self._closed = True
        self._hang_up()
        self._socket.close()
        self._end()

    def _end(self) -> None:
        if self._pidfd is None:
            return
        self._kill()
        waiting = select.poll()
        waiting.register(self._pidfd, select.POLLIN)
        waiting.poll()
        os.close(self._pidfd)
        self._pidfd = None

    def _kill(self) -> None:
        if self._pidfd is not None and self._ended is None:
            with suppress(ProcessLookupError):  # it has ended, and the notification has not arrived yet
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _send(self) -> None:
        if not self._connected or self.pid is None:
            return
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._unsent.clear()  # `replies` reports the end
        waits = EVENT_READ | EVENT_WRITE if self._unsent else EVENT_READ
        if self._selector.get_key(self._socket).events != waits:
            self._selector.modify(self._socket, waits, self._on_ready)

    def _receive(self) -> None:
        while self._connected:
            try:
                received = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionResetError:
                received = b""
            if received:
                self._received += received
            else:
                self._hang_up()

    def _hang_up(self) -> None:
        """A worker closes its end by ending, which no signal changes any more; one that does not is of no use."""
        if self._connected:
            self._connected = False
            self._selector.unregister(self._socket)
        self._kill()
