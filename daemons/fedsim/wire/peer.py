"""The two sides of a connection: the identity of this one, the address of the other."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.spool.files import Role


@dataclass(frozen=True)
class Identity:
    """A name and a role, sent in the handshake. With TLS the certificate must contain both."""

    name: str
    role: Role

    def __str__(self) -> str:
        """For messages: `client node-1`."""
        return f"{self.role} {self.name}"


@dataclass(frozen=True)
class Peer:
    """A host to send to: its name, and the address of its receiver; without `host` it listens on no port."""

    name: str
    host: str = ""
    port: int = 0

    @property
    def listens(self) -> bool:
        """Whether a connection to it can be opened; if not, it opens one itself."""
        return bool(self.host)

    def __str__(self) -> str:
        """For messages: `node-1 (192.0.2.7:9002)`."""
        return f"{self.name} ({self.host}:{self.port})" if self.listens else f"{self.name} (listens on no port)"
