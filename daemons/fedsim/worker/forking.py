"""The daemon's side of fork servers: processes with imported libraries that fork workers in milliseconds.

Each serves one version of fedsim and one number of threads, which libraries read when they are imported. The kernel
guarantees that a fork server does not outlive its daemon, nor a worker its fork server. `__main__` is the other side.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, BaseSelector
from typing import Any, Protocol

from fedsim.log import get_logger
from fedsim.memory import oom_kills

MAX_MESSAGE_BYTES = 1 << 16


class Forked(Protocol):
    """Callbacks for the requester of a worker."""

    def began(self, pid: int, pidfd: int) -> None:
        """The worker is running; the callee must close the pidfd."""

    def not_started(self, problem: str) -> None:
        """The worker could not be started."""

    def ended(self, how: str) -> None:
        """The worker has ended."""


class ForkServer:
    """One process from which workers are forked."""

    def __init__(self, selector: BaseSelector, python: Path, threads: int) -> None:
        self._selector = selector
        self._listeners: dict[int, Forked] = {}
        self._count = 0
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [str(python), "-P", "-m", "fedsim.worker", str(theirs.fileno()), str(os.getpid()), str(threads)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(threads),
                    "MKL_NUM_THREADS": str(threads),
                    "OPENBLAS_NUM_THREADS": str(threads),
                    "POLARS_MAX_THREADS": str(threads),
                    # cuBLAS is deterministic only with a fixed workspace.
                    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
                    "TORCHINDUCTOR_DETERMINISTIC": "1",
                },
            )
        self._socket.setblocking(False)
        self.python, self.threads = python, threads
        self._oom_kills = oom_kills()
        self.alive = True
        # None: nobody asked for it; False: it is importing torch at low priority; True: it has done so.
        self.warm: bool | None = None
        selector.register(self._socket, EVENT_READ, self._ready)

    @property
    def idle(self) -> bool:
        """Whether none of its workers is left."""
        return not self._listeners

    @property
    def usable(self) -> bool:
        """Whether it accepts requests."""
        return self.alive and self._process.poll() is None

    def fork(self, sock: socket.socket, listener: Forked, *, learns: bool, log: Mapping[str, Any]) -> None:
        """Request a worker, without blocking.

        Args:
            sock: the worker's end of its connection.
            listener: is called when it runs, and when it has ended.
            learns: whether torch is to be imported before.
            log: fields of every event that it logs.
        """
        self._count += 1
        self._listeners[self._count] = listener
        request = {"number": self._count, "learns": learns, "log": dict(log)}
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [sock.fileno()])
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended, which `_ready` reports to the requesters
        except BlockingIOError:
            self._process.kill()  # hundreds of requests wait: it does nothing any more

    def start_warming(self) -> None:
        """Let it import torch at low priority, before the first worker needs it."""
        self.warm = False
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended, which the next request finds
            self._socket.send(json.dumps({"warm": True}).encode())

    def close(self) -> None:
        """Kill it with its workers; it has ended on return."""
        if not self.alive:
            return
        self.alive = False
        self._selector.unregister(self._socket)
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _ready(self) -> None:
        while self.alive:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            except ConnectionResetError:
                message, descriptors = b"", []
            if not message:
                self._lost()
                return
            notice = json.loads(message)
            if "warm" in notice:
                self.warm = True
                get_logger().info("workers_warm", threads=self.threads)
                continue
            number = notice["number"]
            if "pid" in notice:
                self._listeners[number].began(notice["pid"], descriptors[0])
            elif "problem" in notice:
                self._listeners.pop(number).not_started(notice["problem"])
            else:
                self._listeners.pop(number).ended(self._how_it_ended(notice["code"]))

    def _how_it_ended(self, code: int) -> str:
        """Describe an exit code; the kernel counts what it kills for lack of memory, on the host or in a cgroup."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        if code == -signal.SIGKILL and self._oom_kills > before:
            return "was killed because it ran out of memory"
        return how_it_ended(code)

    def _lost(self) -> None:
        self.close()
        how = f"ended with its fork server, which {self._how_it_ended(self._process.returncode)}"
        listeners, self._listeners = list(self._listeners.values()), {}
        for listener in listeners:
            listener.ended(how)


class ForkServers:
    """A daemon's fork servers: each is started for the first worker of its kind, and reused for later ones."""

    def __init__(self, selector: BaseSelector) -> None:
        self.selector = selector
        self._servers: list[ForkServer] = []

    def __iter__(self) -> Iterator[ForkServer]:
        """Those that there are."""
        return iter(self._servers)

    def of(self, threads: int | None, python: Path | None = None) -> ForkServer:
        """Return the server for this many threads (None: any number) and interpreter (None: that of this process).

        Idle servers for other interpreters, as after an upgrade, are ended; so is one that is still warming, because
        at its low priority the requester could wait for long.
        """
        python = python or Path(sys.executable)
        fitting = []
        for server in self._servers:
            fits = server.usable and server.python == python and threads in (None, server.threads)
            if fits and (server.warm is not False or not server.idle):
                fitting.append(server)
            elif server.idle:
                server.close()
        self._servers = [server for server in self._servers if server.alive]
        if not fitting:
            fitting = [ForkServer(self.selector, python, threads or 1)]
            self._servers += fitting
        return fitting[0]

    def warm(self, threads: int) -> None:
        """Have the server for this many threads import torch at low priority, unless it has done so."""
        if not any(server.usable and server.threads == threads and server.warm is not None for server in self._servers):
            self.of(threads).start_warming()

    def close(self) -> None:
        """End them all."""
        for server in self._servers:
            server.close()
        self._servers.clear()


def how_it_ended(code: int) -> str:
    """Describe an exit code of `subprocess`."""
    if code < 0:
        return f"was killed by {signal.strsignal(-code) or f'signal {-code}'} (signal {-code})"
    return f"ended with exit code {code}"
