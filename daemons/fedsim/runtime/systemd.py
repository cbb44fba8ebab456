"""Messages to the service manager (sd_notify's protocol: a datagram to $NOTIFY_SOCKET)."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import Final

_EXTEND_USEC: Final = 30_000_000


def notify(*states: str, wait: bool = True) -> bool:
    """Send states to systemd; does nothing where no service manager listens. Returns false if they were dropped.

    Args:
        states: in one message.
        wait: until the message can be queued. Otherwise it is dropped if the service manager has not read those before
            it, which is right for what is sent again soon.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return True
    if address.startswith("@"):
        address = "\0" + address[1:]
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    try:
        with socket.socket(socket.AF_UNIX, kind) as sock, suppress(ConnectionRefusedError, FileNotFoundError):
            sock.sendto("\n".join(states).encode(), 0 if wait else socket.MSG_DONTWAIT, address)
    except OSError:  # the queue is full, or this process has no descriptor left
        return False
    return True


def notify_reloading() -> None:
    """Announce a reload; `READY=1` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def extend_timeout() -> None:
    """Feed the watchdog and extend the start's timeout: waiting for a resource may take as long as it takes."""
    notify("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={_EXTEND_USEC}")
