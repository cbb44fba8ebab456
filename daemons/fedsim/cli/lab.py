"""A whole lab on one machine: every daemon a process of its own, on loopback, with the embedded database.

The demonstration runs it, and so do the tests: the same commands, YAML files and sockets as on real hosts.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from fedsim.errors import FedsimError, Unavailable
from fedsim.pdeathsig import end_with_parent

START_SECONDS = 60.0
STOP_SECONDS = 15.0


# Below those that the kernel gives to outgoing connections, one of which could take it before the daemon listens. Each
# process goes through them from a place of its own, so that two labs that start at once do not choose the same.
_PORTS = range(20_000, 32_768)
_places = itertools.count(secrets.randbelow(len(_PORTS)))


def free_port() -> int:
    """A port of loopback that nothing listens on now, and that this process has not been given before.

    Raises:
        Unavailable: there is none.
    """
    for place in itertools.islice(_places, len(_PORTS)):
        port = _PORTS[place % len(_PORTS)]
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise Unavailable(f"every port of loopback from {_PORTS[0]} to {_PORTS[-1]} is in use: end what listens there")


@dataclass
class Process:
    """One daemon: how it is started, and its process while it runs."""

    name: str
    command: list[str]
    log: Path
    popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        if self.popen is None:
            raise FedsimError(f"{self.name} does not run")
        return self.popen.pid

    def tail(self) -> str:
        """The last lines that it logged."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-15:])


@dataclass(frozen=True)
class NodeSpec:
    """A node of the lab: its data folder, its data sets (as in client.yml), and keys of client.yml that differ."""

    name: str
    data: Path
    datasets: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)


class LocalLab:
    """The processes of a lab and its files under one folder. Use it as a context: leaving it ends every process."""

    def __init__(
        self,
        folder: Path,
        nodes: list[NodeSpec],
        *,
        server: Mapping[str, Any] | None = None,
        web: Mapping[str, Any] | None = None,
        receiver: Mapping[str, Any] | None = None,
        web_port: int = 0,
    ) -> None:
        """Write the YAML files.

        Args:
            folder: of configuration, spools, database and logs; made if missing.
            nodes: at least one.
            server: keys of server.yml that differ from the default.
            web: the same of web.yml.
            receiver: the same of every receiver.yml.
            web_port: where the web listens; 0: any free port.
        """
        self.folder = folder.resolve()
        self.nodes = nodes
        self.database = f"sqlite:///{self.folder / 'fedsim.db'}"
        self.server_spool = self.folder / "server"
        self.web_port = web_port or free_port()
        self.processes: dict[str, Process] = {}
        for name in ("etc", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._write(server or {}, web or {}, receiver or {})

    @property
    def url(self) -> str:
        """Where the web answers."""
        return f"http://127.0.0.1:{self.web_port}"

    def node_spool(self, name: str) -> Path:
        """The spool of a node."""
        return self.folder / name

    def config(self, process: str) -> Path:
        """The YAML file of a process."""
        return self.folder / "etc" / f"{process}.yml"

    # ------------------------------------------------------------ processes

    def __enter__(self) -> Self:
        """Start every process."""
        try:
            self.start(*self.processes)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End every process."""
        self.stop()

    def start(self, *names: str) -> None:
        """Start processes and wait until each says that it is ready.

        Raises:
            Unavailable: one ended, or was not ready in time; with the last lines of its log.
        """
        with tempfile.TemporaryDirectory(prefix="fedsim-") as place, ExitStack() as open_until_the_end:
            waiting = {}
            for name in names:
                listener = self._launch(self.processes[name], Path(place) / name)
                waiting[name] = open_until_the_end.enter_context(listener)
            deadline = time.monotonic() + START_SECONDS
            for name, listener in waiting.items():
                self._await_ready(self.processes[name], listener, deadline)

    def launch(self, name: str) -> None:
        """Start a process without waiting until it is ready."""
        with tempfile.TemporaryDirectory(prefix="fedsim-") as place:
            self._launch(self.processes[name], Path(place) / name).close()

    def _launch(self, process: Process, notify: Path) -> socket.socket:
        """Start a process that tells on the socket at `notify` when it is ready, as it would tell systemd."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(str(notify))
        with process.log.open("ab") as log:
            process.popen = subprocess.Popen(
                process.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": str(notify)},
                start_new_session=True,
                # However this process ends, nothing of the lab stays behind.
                preexec_fn=functools.partial(end_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - sets a flag
            )
        return listener

    def _await_ready(self, process: Process, listener: socket.socket, deadline: float) -> None:
        pidfd = os.pidfd_open(process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(listener, selectors.EVENT_READ)
                selector.register(pidfd, selectors.EVENT_READ)
                while True:
                    ready = {key.fileobj for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}
                    if listener in ready and b"READY=1" in listener.recv(4096).split(b"\n"):
                        return
                    if pidfd in ready and listener not in ready:
                        raise Unavailable(f"{process.name} ended at once:\n{process.tail()}")
                    if not ready:
                        raise Unavailable(f"{process.name} was not ready in {START_SECONDS:g} s:\n{process.tail()}")
        finally:
            os.close(pidfd)

    def stop(self, *names: str) -> None:
        """End processes, all if none is named; they are gone on return."""
        chosen = [self.processes[name] for name in names or reversed(list(self.processes))]
        for process in chosen:
            if process.popen is not None:
                process.popen.send_signal(signal.SIGTERM)
        for process in chosen:
            if process.popen is not None:
                try:
                    process.popen.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.popen.kill()
                    process.popen.wait()
                process.popen = None

    def kill(self, name: str) -> None:
        """End a process as a crash would: SIGKILL."""
        process = self.processes[name]
        os.kill(process.pid, signal.SIGKILL)
        if process.popen is not None:
            process.popen.wait()
        process.popen = None

    # ------------------------------------------------------------ files

    def _write(self, server: Mapping[str, Any], web: Mapping[str, Any], receiver: Mapping[str, Any]) -> None:
        server_port = free_port()
        node_ports = {node.name: free_port() for node in self.nodes}
        self._add(
            "receiver",
            "receiver",
            {
                "name": "server",
                "role": "server",
                "listen": {"port": server_port},
                "spool": str(self.server_spool),
                "peers": [{"name": "web", "role": "web"}, *({"name": n.name, "role": "client"} for n in self.nodes)],
                **receiver,
            },
        )
        self._add(
            "server",
            "server",
            {
                "spool": str(self.server_spool),
                "database": self.database,
                "nodes": [{"name": name, "port": port} for name, port in node_ports.items()],
                **server,
            },
        )
        for node in self.nodes:
            spool = str(self.node_spool(node.name))
            self._add(
                "receiver",
                f"{node.name}-receiver",
                {
                    "name": node.name,
                    "role": "client",
                    "listen": {"port": node_ports[node.name]},
                    "spool": spool,
                    "peers": [{"name": "server", "role": "server"}],
                    **receiver,
                },
            )
            self._add(
                "client",
                node.name,
                {
                    "name": node.name,
                    "server": {"port": server_port},
                    "spool": spool,
                    "data": str(node.data),
                    "datasets": node.datasets,
                    **node.settings,
                },
            )
        self._add(
            "web",
            "web",
            {
                "database": self.database,
                "listen": {"port": self.web_port},
                "server": {"port": server_port},
                "checkpoints": str(self.server_spool / "checkpoints"),
                "registration": "open",
                **web,
            },
        )

    def _add(self, daemon: str, name: str, content: dict[str, Any]) -> None:
        path = self.config(name)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        command = [str(Path(sys.executable).with_name(f"fedsim-{daemon}")), "--config", str(path)]
        self.processes[name] = Process(name, command, self.folder / "log" / f"{name}.log")
