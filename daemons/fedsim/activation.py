"""Socket activation (sd_listen_fds(3)): systemd's sockets survive restarts, so no connection is refused."""

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
    """Return the sockets that systemd passed to this process; empty if there are none, and for a second call.

    Children inherit neither the sockets nor their environment variables.

    Args:
        configured: `listen:` from the configuration; a different port of a socket is logged.
        plain: whether connections are unencrypted without this being explicitly allowed.

    Raises:
        ConfigError: something other than a listening TCP socket was passed, or one beyond loopback that is not allowed.
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
                problem=f"systemd's socket is used instead of `listen: {configured}`; make them equal",
            )
    if problems:
        for sock in sockets:
            sock.close()
        raise ConfigError("the socket unit of systemd", problems)
    return sockets


def _problem(sock: socket.socket, *, plain: bool) -> str | None:
    """Why the socket cannot be used, or None."""
    if sock.family not in {socket.AF_INET, socket.AF_INET6} or sock.type != socket.SOCK_STREAM:
        return "is not a TCP socket; use ListenStream= with a port"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen; use Accept=no"
    address = str(sock.getsockname()[0])
    if plain and not is_loopback(address):
        return f"{address} is not on loopback: configure `tls:`, listen on loopback, or set `insecure_plaintext: true`"
    return None
