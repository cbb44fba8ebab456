"""Who speaks: the identity of this side, and the address of the other."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.spool.files import Role


@dataclass(frozen=True)
class Identity:
    """A name and what its owner is. Told in the handshake; with TLS the certificate must hold the name."""

    name: str
    role: Role

    def __str__(self) -> str:
        """As people read it: `client node-1`."""
        return f"{self.role} {self.name}"


@dataclass(frozen=True)
class Peer:
    """A receiver to send to: the name that it must tell, and where it listens."""

    name: str
    host: str
    port: int

    def __str__(self) -> str:
        """As people read it: `node-1 (192.0.2.7:9002)`."""
        return f"{self.name} ({self.host}:{self.port})"
