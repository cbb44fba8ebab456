"""Listening sockets that systemd made for this process (sd_listen_fds(3)): they outlive it, so nobody is refused."""

from __future__ import annotations

import os
import socket

from fedsim.config import Address
from fedsim.config.fields import is_loopback
from fedsim.errors import ConfigError
from fedsim.log import get_logger

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def passed_sockets(configured: Address, *, plain: bool) -> list[socket.socket]:
    """Take the sockets that systemd passed to this process; none where it passed none, or at a second call.

    Children inherit neither the sockets nor the variables that tell of them.

    Args:
        configured: the `listen:` of the YAML; that a socket has another port is logged.
        plain: whether what is spoken there is not encrypted, and the owner does not insist on that.

    Raises:
        ConfigError: something else than a listening TCP socket was passed, or one beyond loopback that must not be.
    """
    pid, count, names = (os.environ.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    sockets = []
    problems = []
    for number, name in zip(range(int(count)), [*names.split(":"), *[""] * int(count)], strict=False):
        sock = socket.socket(fileno=_FIRST + number)
        sock.set_inheritable(False)
        sockets.append(sock)
        problem = _problem(sock, plain=plain)
        if problem is not None:
            problems.append(f"the socket {name or number}: {problem}")
        elif sock.getsockname()[1] != configured.port:
            get_logger().warning(
                "listens_elsewhere",
                address=":".join(map(str, sock.getsockname()[:2])),
                problem=f"systemd's socket counts, not `listen: {configured}`; make them equal",
            )
    if problems:
        for sock in sockets:
            sock.close()
        raise ConfigError("what systemd's socket unit passes", problems)
    return sockets


def _problem(sock: socket.socket, *, plain: bool) -> str | None:
    """Why the socket cannot be used, or None."""
    if sock.family not in {socket.AF_INET, socket.AF_INET6} or sock.type != socket.SOCK_STREAM:
        return "is not one of TCP; use ListenStream= with a port"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen; use Accept=no"
    address = str(sock.getsockname()[0])
    if plain and not is_loopback(address):
        return (
            f"{address} is not on loopback: encrypt what is spoken there, listen on loopback, "
            "or set `insecure_plaintext: true`"
        )
    return None
