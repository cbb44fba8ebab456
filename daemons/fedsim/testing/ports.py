"""Finds unused ports on loopback."""

from __future__ import annotations

import errno
import itertools
import secrets
import socket

from fedsim.errors import Unavailable

# Below the kernel's range for outgoing connections, one of which could take a port before the daemon listens. Each
# process starts at a random port, so that two clusters started at the same time do not choose the same one.
_PORTS = range(20_000, 32_768)
_offsets = itertools.count(secrets.randbelow(len(_PORTS)))


def free_port() -> int:
    """Return an unused port on loopback that this process has not been given before.

    Raises:
        Unavailable: no port is free.
    """
    for offset in itertools.islice(_offsets, len(_PORTS)):
        port = _PORTS[offset % len(_PORTS)]
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise Unavailable(
        f"every port of loopback from {_PORTS[0]} to {_PORTS[-1]} is in use: stop a process that listens there"
    )
