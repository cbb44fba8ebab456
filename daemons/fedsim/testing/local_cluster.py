"""A cluster on one machine: every daemon is a process on loopback, with the embedded database.

`fedsim demo` and the tests use it. It runs the same commands, YAML files and sockets as real hosts. Torch is imported
for the first task, unless `warm_worker` is set: the daemons share the processors with their user.
"""

from __future__ import annotations

import functools
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from inotify_simple import INotify, flags

from fedsim.errors import FedsimError, Unavailable
from fedsim.pdeathsig import end_with_parent
from fedsim.testing.ports import free_port

START_SECONDS = 60.0
STOP_SECONDS = 15.0


@dataclass
class DaemonProcess:
    """A daemon: its command line, and its process while it runs."""

    name: str
    command: list[str]
    log: Path
    popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The id of the running process."""
        if self.popen is None:
            raise FedsimError(f"{self.name} is not running")
        return self.popen.pid

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-15:])


@dataclass(frozen=True)
class NodeSpec:
    """A node of the cluster: its data folder, its data sets (as in client.yml), and further keys of client.yml.

    Data sets are open unless they say `access: guarded`: a cluster on one machine is for public data and trials.
    One that does not listen has no receiver: it receives over the connection that its daemon opens.
    """

    name: str
    data: Path
    datasets: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    listens: bool = True


class LocalCluster:
    """The processes of a cluster, with all their files in one folder. As a context manager it starts and stops them."""

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
            folder: for configuration, spools, database and logs; created if missing.
            nodes: at least one.
            server: further keys of server.yml.
            web: further keys of web.yml.
            receiver: further keys of every receiver.yml.
            web_port: the web's port; 0 for any free port.
        """
        self.folder = folder.resolve()
        self.nodes = nodes
        self.database = f"sqlite:///{self.folder / 'fedsim.db'}"
        self.server_spool = self.folder / "server"
        self.models = self.folder / "models"
        self.web_port = web_port or free_port()
        self.processes: dict[str, DaemonProcess] = {}
        for name in ("etc", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._write(server or {}, web or {}, receiver or {})

    @property
    def url(self) -> str:
        """The web's address."""
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
        """Stop every process."""
        self.stop()

    def start(self, *names: str) -> None:
        """Start processes and wait until each reports that it is ready.

        Raises:
            Unavailable: a process exited or was not ready in time; includes the last lines of its log.
        """
        with tempfile.TemporaryDirectory(prefix="fedsim-") as sockets, ExitStack() as stack:
            waiting = {}
            for name in names:
                listener = self._launch(self.processes[name], Path(sockets) / name)
                waiting[name] = stack.enter_context(listener)
            deadline = time.monotonic() + START_SECONDS
            for name, listener in waiting.items():
                self._await_ready(self.processes[name], listener, deadline)

    def launch(self, name: str) -> None:
        """Start a process without waiting until it is ready."""
        with tempfile.TemporaryDirectory(prefix="fedsim-") as sockets:
            self._launch(self.processes[name], Path(sockets) / name).close()

    def _launch(self, process: DaemonProcess, notify: Path) -> socket.socket:
        """Start a process that reports readiness on the socket at `notify`, as it would to systemd."""
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
                # No process outlives this one, however it ends.
                preexec_fn=functools.partial(end_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - sets a flag
            )
        return listener

    def _await_ready(self, process: DaemonProcess, listener: socket.socket, deadline: float) -> None:
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
                        raise Unavailable(f"{process.name} exited at once:\n{process.tail()}")
                    if not ready:
                        raise Unavailable(f"{process.name} was not ready in {START_SECONDS:g} s:\n{process.tail()}")
        finally:
            os.close(pidfd)

    def stop(self, *names: str) -> None:
        """Stop the named processes (default: all) and wait until they have exited."""
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
        """Kill a process with SIGKILL, like a crash."""
        process = self.processes[name]
        os.kill(process.pid, signal.SIGKILL)
        if process.popen is not None:
            process.popen.wait()
        process.popen = None

    # ------------------------------------------------------------ waiting

    def await_log(self, name: str, event: str, *, times: int = 1, seconds: float = 60) -> None:
        """Wait until a process has logged an event this many times since the cluster was created."""
        self.await_logs([self.processes[name].log], (event,), times=times, seconds=seconds)

    def await_logs(self, logs: list[Path], events: tuple[str, ...], *, times: int = 1, seconds: float = 60) -> None:
        """Wait until one of the files contains one of the events this many times."""

        def logged() -> bool:
            return any(path.read_text(encoding="utf-8").count(event) >= times for path in logs for event in events)

        _await(logged, logs, flags.MODIFY, seconds, f"none of {events} in {logs}")

    def await_file(self, path: Path, *, seconds: float = 30) -> None:
        """Wait until a file exists."""
        _await(path.exists, [path.parent], flags.MOVED_TO | flags.CREATE, seconds, f"{path} was not created")

    def await_gone(self, folder: Path, pattern: str, *, seconds: float = 30) -> None:
        """Wait until no file in a folder matches the pattern."""
        removed = flags.DELETE | flags.MOVED_FROM
        _await(lambda: not list(folder.glob(pattern)), [folder], removed, seconds, f"{folder} still holds {pattern}")

    def files(self, host: str) -> set[str]:
        """Every file in a host's spool except the announcements, which come and go, and the queues with them."""
        spool = self.folder / host
        paths = (path.relative_to(spool) for path in spool.rglob("*") if path.is_file())
        return {str(path) for path in paths if path.parts[0] not in {"hello", "outgoing", "sent"}}

    # ------------------------------------------------------------ files

    def _write(self, server: Mapping[str, Any], web: Mapping[str, Any], receiver: Mapping[str, Any]) -> None:
        server_port = free_port()
        node_ports = {node.name: free_port() for node in self.nodes if node.listens}
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
                "models": str(self.models),
                "warm_worker": False,
                "nodes": [
                    {"name": node.name, **({"port": node_ports[node.name]} if node.listens else {"listens": False})}
                    for node in self.nodes
                ],
                **server,
            },
        )
        for node in self.nodes:
            spool = str(self.node_spool(node.name))
            if node.listens:
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
                    "datasets": [{"access": "open", **dataset} for dataset in node.datasets],
                    "warm_worker": False,
                    **({} if node.listens else {"listens": False}),
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
                "models": str(self.models),
                "registration": "open",
                **web,
            },
        )

    def _add(self, daemon: str, name: str, content: dict[str, Any]) -> None:
        path = self.config(name)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        command = [str(Path(sys.executable).with_name(f"fedsim-{daemon}")), "--config", str(path)]
        self.processes[name] = DaemonProcess(name, command, self.folder / "log" / f"{name}.log")


def _await(condition: Callable[[], bool], paths: list[Path], events: int, seconds: float, problem: str) -> None:
    """Check the condition at each change of the paths; raises `TimeoutError` with the problem."""
    deadline = time.monotonic() + seconds
    with INotify() as inotify:
        for path in paths:
            inotify.add_watch(path, events)
        while not condition():
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{problem} after {seconds:g} s")
            inotify.read(timeout=1000)
