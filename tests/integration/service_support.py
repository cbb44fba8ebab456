"""The part of systemd for tests of one daemon: the notify socket, and passed sockets."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

PATIENCE = 60.0
# As systemd passes them: descriptors from 3 on, and the process's own pid in the environment.
_PASS = """
import os, sys
count, command = int(sys.argv[1]), sys.argv[2:]
descriptors = [int(word) for word in os.environ.pop("PASSED").split()]
for number, descriptor in enumerate(descriptors, 3):
    os.dup2(descriptor, number + 100)
for number in range(3, 3 + count):
    os.dup2(number + 100, number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(command[0], command)
"""


def program(name: str) -> Path:
    return Path(sys.executable).with_name(f"fedsim-{name}")


class Service:
    """A daemon, as a unit of Type=notify; leaving the context ends it."""

    def __init__(self, folder: Path, command: Sequence[str | Path], passed: Sequence[socket.socket] = ()) -> None:
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = folder / "notify"
        address.unlink(missing_ok=True)
        self._notify.bind(str(address))
        self.told: list[str] = []
        environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
        words = [str(word) for word in command]
        if passed:
            environment |= {
                "PASSED": " ".join(str(sock.fileno()) for sock in passed),
                "LISTEN_FDS": str(len(passed)),
                "LISTEN_FDNAMES": ":".join(f"port-{number}" for number in range(len(passed))),
            }
            words = [sys.executable, "-c", _PASS, str(len(passed)), *words]
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words, env=environment, stderr=log, pass_fds=[sock.fileno() for sock in passed]
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._notify.close()

    def await_told(self, *wanted: str, seconds: float = PATIENCE) -> str:
        """The next message, from now on, in which a line begins with one of these; what came before is kept as well."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._notify, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                message = self._notify.recv(65536).decode()
                self.told.append(message)
                if any(line.startswith(wanted) for line in message.splitlines()):
                    return message
        raise AssertionError(f"{wanted} not told, but {self.told}; log:\n{self.log.read_text()}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)
