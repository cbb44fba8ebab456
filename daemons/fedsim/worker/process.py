"""The daemon's side of a worker: start it, give it jobs, notice its end, kill it for certain.

A worker never outlives its daemon (the kernel kills it with its parent) and is reached by pidfd, so that a reused pid
can never be hit. Nothing here waits for a worker but `close`, which has killed it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from typing import Any

from fedsim.worker.jobs import Job, Reply, encode_job, read_reply

# The worker's name in the journal, and what stands in each of its events: a JSON object.
LOG_VARIABLE = "FEDSIM_WORKER_LOG"


class WorkerGone(Exception):  # noqa: N818 - an end, not always an error
    """The worker's process ended; the message says how."""


class WorkerProcess:
    """One worker. The selector calls `on_ready` when a reply has come or the process has ended: then ask `replies`."""

    def __init__(
        self,
        selector: BaseSelector,
        on_ready: Callable[[], None],
        *,
        threads: int,
        python: Path | None = None,
        log: Mapping[str, Any] | None = None,
    ) -> None:
        """Start a process; it imports what a job needs when it comes.

        Args:
            selector: the daemon's.
            on_ready: called by it.
            threads: with which it computes.
            python: the interpreter; None: this process's.
            log: what stands in every event that it logs.
        """
        told = {"identifier": Path(sys.argv[0]).name, **(log or {})}
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    str(python or sys.executable),
                    "-m",
                    "fedsim.worker",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    str(threads),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={
                    **os.environ,
                    LOG_VARIABLE: json.dumps(told),
                    "OMP_NUM_THREADS": str(threads),
                    "MKL_NUM_THREADS": str(threads),
                    "OPENBLAS_NUM_THREADS": str(threads),
                    # cuBLAS is deterministic only with a fixed workspace.
                    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
                },
            )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        ours.setblocking(False)
        self._socket = ours
        self._connected = True
        self._unsent = bytearray()
        self._received = bytearray()
        self._selector = selector
        self._on_ready = on_ready
        for descriptor in (ours, self._pidfd):
            selector.register(descriptor, EVENT_READ, on_ready)

    def give(self, job: Job) -> None:
        """Hand over a job; jobs are done in order. What the worker does not take yet is sent when it does."""
        self._unsent += encode_job(job)
        self._send()

    def replies(self) -> list[Reply]:
        """Every reply that has come.

        Raises:
            WorkerGone: if the process has ended and no whole reply is left.
        """
        code = self._process.poll()  # before looking: what it said before its end is then all there
        self._send()
        self._receive()
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        if code is not None and not lines:
            raise WorkerGone(_how_it_ended(code))
        return [read_reply(bytes(line)) for line in lines]

    def close(self) -> None:
        """Kill the process, wait until it is gone, and free what it took."""
        self._hang_up()
        self._process.wait()
        self._selector.unregister(self._pidfd)
        os.close(self._pidfd)
        self._socket.close()

    def _send(self) -> None:
        if not self._connected:
            return
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._unsent.clear()  # `replies` tells of the end
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
        if self._process.poll() is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.strsignal(-code) or f'signal {-code}'} (signal {-code})"
    return f"ended with exit code {code}"
