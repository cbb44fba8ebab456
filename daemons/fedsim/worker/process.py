"""The daemon's side of a worker: start it, give it jobs, notice its end, kill it for certain.

A worker never outlives its daemon (the kernel kills it with its parent) and is reached by pidfd, so that a reused pid
can never be hit.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.worker.jobs import Job, Reply, encode_job, read_reply

# A process without a connection has nothing left to do but to end.
EXIT_SECONDS = 2.0
# The worker's name in the journal, and what stands in each of its events: a JSON object.
LOG_VARIABLE = "FEDSIM_WORKER_LOG"


class WorkerGone(Exception):  # noqa: N818 - an end, not always an error
    """The worker's process ended; the message says how."""


class WorkerProcess:
    """One worker. Its `fileno` becomes readable when a reply has come or the process has ended."""

    def __init__(self, *, threads: int, python: Path | None = None, log: Mapping[str, Any] | None = None) -> None:
        """Start a process; it imports what a job needs when it comes.

        Args:
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
        self._received = bytearray()

    def fileno(self) -> int:
        """For the daemon's selector."""
        return self._socket.fileno()

    def give(self, job: Job) -> None:
        """Hand over a job; jobs are done in order."""
        self._socket.setblocking(True)
        try:
            self._socket.sendall(encode_job(job))
        except (BrokenPipeError, ConnectionResetError):
            return  # the end of the process is told by `replies`
        finally:
            self._socket.setblocking(False)

    def replies(self) -> list[Reply]:
        """Every reply that has come.

        Raises:
            WorkerGone: if the process has ended and no whole reply is left.
        """
        ended = False
        while True:
            try:
                received = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except ConnectionResetError:
                received = b""
            if not received:
                ended = True
                break
            self._received += received
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        if ended and not lines:
            raise WorkerGone(self._how_it_ended())
        return [read_reply(bytes(line)) for line in lines]

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return f"closed its connection, but did not end within {EXIT_SECONDS:g} seconds"
        if code < 0:
            return f"was killed by {signal.strsignal(-code) or f'signal {-code}'} (signal {-code})"
        return f"ended with exit code {code}"

    def close(self) -> None:
        """Kill the process, wait until it is gone, and free what it took."""
        if self._process.poll() is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._process.wait()
        os.close(self._pidfd)
        self._socket.close()
