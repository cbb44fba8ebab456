"""The fork server's side: `python -m fedsim.worker SOCKET PARENT THREADS`.

It receives requests over SOCKET, which preserves message boundaries, and forks a worker for each:

    {"number": 7, "learns": true, "log": {...}} and the worker's own socket →
    ← {"number": 7, "pid": 4711} and a pidfd, or {"number": 7, "problem": "why there is none"}
    ← {"number": 7, "code": -9} when it has ended
    {"warm": true} →
    ← {"warm": true} when torch is imported

Torch is imported for the first worker that needs it, or before, on request, at low priority; later workers have it
immediately, and share its memory. It holds no task's data and has used no GPU, so neither has a worker when it starts.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from selectors import EVENT_READ, DefaultSelector
from typing import Any, Self

from fedsim.errors import BadInput
from fedsim.imports import without_collecting
from fedsim.pdeathsig import end_with_parent
from fedsim.plugins import load_built_in
from fedsim.worker.forking import MAX_MESSAGE_BYTES
from fedsim.worker.main_loop import live

_FOR_LEARNING = (
    "fedsim.learning.evaluate",
    "fedsim.learning.metrics",
    "fedsim.learning.networks",
    "fedsim.worker.checkpoint",
    "fedsim.worker.node_jobs",
    "fedsim.worker.server_jobs",
    "fedsim.worker.speed",
    "numpy.ctypeslib",
    "numpy.random",
)
"""What jobs that need torch import sooner or later."""
_NICE_OF_WARMING = 10


@dataclass(frozen=True)
class Child:
    """A forked worker, as seen by the fork server."""

    number: int
    pid: int
    pidfd: int


class Forker:
    """Forks workers and reports how they end. In a worker `serve` returns, and `__exit__` closes everything."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, Child] = {}
        self._selector = DefaultSelector()
        self._selector.register(control, EVENT_READ)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the fork server's descriptors, which workers must not inherit."""
        self._selector.close()
        self._control.close()
        for child in self._children.values():
            os.close(child.pidfd)

    def serve(self) -> tuple[socket.socket, dict[str, Any]] | None:
        """Serve requests. Returns in each worker with socket and request, and in the server when the daemon ends."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._control:
                    self._reap(self._children[key.fd])
                    continue
                try:
                    message, sockets, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 1)
                except ConnectionResetError:  # the daemon ended with messages unread
                    return None
                if not message:
                    return None
                request = json.loads(message)
                if "warm" in request:
                    _import_at_low_priority()
                    self._tell({"warm": True})
                    continue
                theirs = socket.socket(fileno=sockets[0])
                if self._fork(request) is not None:
                    return theirs, request
                theirs.close()

    def _fork(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Fork; returns the request in the worker, None here."""
        if request["learns"]:
            _import_what_learning_needs()
        number, parent = request["number"], os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell({"number": number, "problem": f"could not be started: {error.strerror}"})
            return None
        if pid == 0:
            end_with_parent(parent, signal.SIGKILL)
            return request
        child = Child(number, pid, os.pidfd_open(pid))
        self._children[child.pidfd] = child
        self._selector.register(child.pidfd, EVENT_READ)
        self._tell({"number": number, "pid": pid}, child.pidfd)
        return None

    def _reap(self, child: Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        del self._children[child.pidfd]
        self._tell({"number": child.number, "code": os.waitstatus_to_exitcode(status)})

    def _tell(self, message: dict[str, Any], *descriptors: int) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the daemon has ended, which the next read reports
            socket.send_fds(self._control, [json.dumps(message).encode()], descriptors)


def _import_at_low_priority() -> None:
    """Import in a thread: Linux gives each its priority, and this process could not raise its own again.

    Nothing is forked meanwhile, so that no worker inherits a lock that the thread holds.
    """

    def run() -> None:
        with suppress(PermissionError):  # a sandbox may forbid it: the import is then as quick as any
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE_OF_WARMING)
        _import_what_learning_needs()

    thread = threading.Thread(target=run, name="warming")
    thread.start()
    thread.join()


def _import_what_learning_needs() -> None:
    if "torch" in sys.modules:
        return
    # A worker that needs it for a job reports the missing package.
    with without_collecting(), suppress(ImportError, BadInput):
        for module in _FOR_LEARNING:
            import_module(module)
        load_built_in()


def main() -> None:
    """Run the fork server, and in each fork a worker."""
    file_number, parent, threads = (int(word) for word in sys.argv[1:4])
    end_with_parent(parent, signal.SIGKILL)
    # Ctrl-C in a terminal is handled by the daemon, which then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Forker(socket.socket(fileno=file_number)) as server:
        worker = server.serve()
    if worker is not None:
        sock, request = worker
        live(sock, threads, request["log"])


if __name__ == "__main__":
    main()
