"""The state of the nodes on the server: latest announcements, their times, and addresses."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedsim.config import NodeAddress, ServerConfig
from fedsim.errors import BadInput
from fedsim.log import get_logger
from fedsim.messages import Hello, read_message
from fedsim.spool.files import Kind
from fedsim.spool.layout import Spool
from fedsim.wire.sender import Peer


@dataclass(frozen=True)
class Announcement:
    """A `hello` with its time of arrival, in seconds since the epoch and by the monotonic clock."""

    hello: Hello
    at: float
    heard: float


def node_peer(node: NodeAddress) -> Peer:
    """The node as a peer to send to."""
    return Peer(node.name, node.address, node.port) if node.listens else Peer(node.name)


class Nodes:
    """Reads the spool's `hello` folder; one file for each node, each announcement replaces the last one."""

    def __init__(self, config: ServerConfig, spool: Spool) -> None:
        self.addresses: dict[str, Peer] = {}
        self._timeout = 0.0
        self._folder = spool.folder(Kind.HELLO)
        self._started = time.monotonic()
        self._known: dict[str, Announcement] = {}
        self._strangers: set[str] = set()
        self._log = get_logger()
        self.reload(config)

    def reload(self, config: ServerConfig) -> list[tuple[Peer, Peer]]:
        """Apply the configured nodes and their timeout; returns old and new address of those that moved."""
        before = self.addresses
        self.addresses = {node.name: node_peer(node) for node in config.nodes}
        self._timeout = config.node_timeout_seconds
        self._most_clients = {node.name: node.max_clients for node in config.nodes}
        self._known = {name: known for name, known in self._known.items() if name in self.addresses}
        self._strangers.clear()
        return [(old, self.addresses[name]) for name, old in before.items() if self.addresses.get(name, old) != old]

    def scan(self, arrived: Iterable[Path] | None = None) -> list[str]:
        """Read the announcements that have arrived (None: all that are there); returns the names of their nodes.

        The time of a file does not show whether it is new: two may arrive within one tick of the file system's clock.
        """
        fresh = []
        for path in sorted(self._folder.glob("*.json") if arrived is None else arrived):
            known = self._known.get(path.stem)
            if path.stem not in self.addresses:
                self._meet_stranger(path.stem)
                continue
            at = path.stat().st_mtime
            announcement = self._read(path, at)
            if announcement is None:
                continue
            if known is None or announcement.heard - known.heard > self._timeout:
                self._log.info("node_online", node=path.stem, clients=announcement.hello.clients)
            if known is not None and announcement.hello.audit.lines < known.hello.audit.lines:
                problem = f"it had {known.hello.audit.lines} lines, and has {announcement.hello.audit.lines} now"
                self._log.warning("audit_log_shortened", node=path.stem, problem=problem)
            self._known[path.stem] = announcement
            fresh.append(path.stem)
        return fresh

    def _meet_stranger(self, name: str) -> None:
        if name not in self._strangers:
            self._strangers.add(name)
            self._log.warning("node_not_configured", node=name, problem="it announces itself: add it to server.yml")

    def _read(self, path: Path, at: float) -> Announcement | None:
        try:
            hello = read_message(Hello, path.read_bytes(), f"the hello of {path.stem}")
            # A file from before the start of this daemon has its age; others have just arrived.
            return Announcement(hello, at, time.monotonic() - max(0.0, time.time() - at))
        except BadInput as error:
            self._log.warning("hello_not_understood", node=path.stem, problem=str(error))
            return None

    def announcement(self, name: str) -> Announcement:
        """The latest announcement of a node that has announced itself."""
        return self._known[name]

    def online(self) -> dict[str, Hello]:
        """The nodes that announced themselves recently, none with more clients than server.yml allows it."""
        since = time.monotonic() - self._timeout
        return {name: self._limited(known.hello) for name, known in self._known.items() if known.heard > since}

    def _limited(self, hello: Hello) -> Hello:
        most = self._most_clients.get(hello.node)
        return hello if most is None or hello.clients <= most else hello.model_copy(update={"clients": most})

    def not_heard(self) -> list[str]:
        """Configured nodes that may still announce themselves, because the server has started recently."""
        if time.monotonic() - self._started > self._timeout:
            return []
        online = self.online()
        return [name for name in self.addresses if name not in online]
