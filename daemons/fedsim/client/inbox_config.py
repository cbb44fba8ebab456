"""What a node that listens on no port accepts over the connection that it opens."""

from __future__ import annotations

from fedsim.config import ClientConfig, PeerConfig, ReceiverConfig


def inbox_config(config: ClientConfig) -> ReceiverConfig:
    """The configuration that a receiver of this node would have."""
    return ReceiverConfig(
        name=config.name,
        role="client",
        listen=config.server,  # not listened on
        spool=config.spool,
        peers=[PeerConfig(name=config.server_name, role="server")],
        limits=config.limits,
    )
