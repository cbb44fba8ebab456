"""The nodes as the server sees them: what each last announced, when, and where its receiver is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedsim.config import ServerConfig
from fedsim.errors import BadInput
from fedsim.log import get_logger
from fedsim.messages import Hello, read_message
from fedsim.spool.files import Kind
from fedsim.spool.layout import Spool
from fedsim.wire.sender import Peer


@dataclass(frozen=True)
class Announcement:
    """A `hello` and when it arrived (seconds since the epoch)."""

    hello: Hello
    at: float


class Nodes:
    """Reads the spool's `hello` folder; one file for each node, each announcement replaces the last one."""

    def __init__(self, config: ServerConfig, spool: Spool, started_at: float) -> None:
        self.addresses = {node.name: Peer(node.name, node.address, node.port) for node in config.nodes}
        self._timeout = config.node_timeout_seconds
        self._folder = spool.folder(Kind.HELLO)
        self._started_at = started_at
        self._known: dict[str, Announcement] = {}
        self._log = get_logger()

    def look(self) -> list[str]:
        """Read what has arrived; returns the names of the nodes that announced themselves anew."""
        fresh = []
        for path in sorted(self._folder.glob("*.json")):
            at = path.stat().st_mtime
            known = self._known.get(path.stem)
            if path.stem not in self.addresses or (known is not None and known.at == at):
                continue
            announcement = self._read(path, at)
            if announcement is None:
                continue
            if known is None or at - known.at > self._timeout:
                self._log.info("node_online", node=path.stem, clients=announcement.hello.clients)
            self._known[path.stem] = announcement
            fresh.append(path.stem)
        return fresh

    def _read(self, path: Path, at: float) -> Announcement | None:
        try:
            return Announcement(read_message(Hello, path.read_bytes(), f"the hello of {path.stem}"), at)
        except BadInput as error:
            self._log.warning("hello_not_understood", node=path.stem, problem=str(error))
            return None

    def announcement(self, name: str) -> Announcement:
        """What the node last announced; it must have."""
        return self._known[name]

    def online(self, now: float) -> dict[str, Hello]:
        """The nodes that announced themselves lately."""
        return {name: known.hello for name, known in self._known.items() if now - known.at < self._timeout}

    def not_heard(self, now: float) -> list[str]:
        """Configured nodes that may well announce themselves soon: the server has not been up for long."""
        if now - self._started_at > self._timeout:
            return []
        online = self.online(now)
        return [name for name in self.addresses if name not in online]
