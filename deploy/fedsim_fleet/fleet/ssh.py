"""SSH connections to hosts with known keys. Every wait has a timeout, and output is limited in size.

The user's OpenSSH configuration applies: `~/.ssh/config` (HostName, Port, User, IdentityFile, UserKnownHostsFile),
known_hosts and the agent.
"""

from __future__ import annotations

import logging
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import paramiko
from paramiko.ssh_exception import BadHostKeyException, NoValidConnectionsError, SSHException

from fedsim.errors import Unavailable
from fedsim_fleet.fleet.inventory import Host

# paramiko logs its exceptions with a traceback; they are reported here.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)
MAX_ANSWER_BYTES = 4 << 20
_PIECE = 1 << 16


class Unreachable(Unavailable):
    """A host does not answer, has a different key, or refuses the log-in; the text says what to do."""


@dataclass(frozen=True)
class CommandResult:
    """The output and the exit code of a command."""

    code: int
    out: str
    err: str

    def text(self) -> str:
        """The standard output; `Unavailable` with the error output if the command failed."""
        if self.code:
            raise Unavailable(f"failed with exit code {self.code}: {(self.err or self.out).strip()[-2000:]}")
        return self.out


class Connection:
    """An open connection. It fails after `seconds` without a response; a command has its own deadline."""

    def __init__(self, host: Host, seconds: float) -> None:
        """Connect and log in.

        Raises:
            Unreachable: the host does not answer within `seconds`, or refuses.
        """
        self.host = host
        self.seconds = seconds
        self._client = paramiko.SSHClient()
        self._client.set_missing_host_key_policy(paramiko.RejectPolicy())
        self._connect(_settings_of(host))

    def _connect(self, settings: paramiko.SSHConfigDict) -> None:
        address = settings.get("hostname", self.host.reached_at)
        port = self.host.port or int(settings.get("port", 22))
        known = settings.get("userknownhostsfile", "~/.ssh/known_hosts").split()
        for name in known:
            with suppress(FileNotFoundError):
                self._client.load_system_host_keys(str(Path(name).expanduser()))
        given = [self.host.key_file] if self.host.key_file else settings.get("identityfile", [])
        keys = [str(Path(key).expanduser()) for key in given if Path(key).expanduser().exists()]
        where = address if port == 22 else f"[{address}]:{port}"
        try:
            self._client.connect(
                address,
                port,
                username=self.host.user or settings.get("user"),
                key_filename=keys or None,  # type: ignore[arg-type]  # the stubs know one only
                timeout=self.seconds,
                banner_timeout=self.seconds,
                auth_timeout=self.seconds,
                channel_timeout=self.seconds,
            )
        except BadHostKeyException as error:
            raise Unreachable(
                f"its host key differs from the one in known_hosts for {where}: if the host was reinstalled, run "
                f"ssh-keygen -R '{where}' and log in once with ssh; otherwise another machine answers at this address"
            ) from error
        except paramiko.AuthenticationException as error:
            raise Unreachable(f"it refuses the log-in ({error}): add your public key to its authorized_keys") from error
        except (NoValidConnectionsError, TimeoutError) as error:
            raise Unreachable(
                f"no answer from {where} within {self.seconds:g} s: check that the host is up and connected"
            ) from error
        except SSHException as error:
            if "not found in known_hosts" in str(error):
                raise Unreachable(f"its key is not known: log in once with ssh {where}, and compare the key") from error
            raise Unreachable(f"SSH to {where} fails: {error}") from error
        except OSError as error:
            raise Unreachable(f"{where} cannot be reached: {error.strerror or error}") from error
        transport = self._client.get_transport()
        if transport is not None and isinstance(transport.sock, socket.socket):
            transport.set_keepalive(max(1, int(self.seconds)))
            # A connection that only receives detects a broken link by its unacknowledged keep-alive messages.
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.seconds * 1000))

    def __enter__(self) -> Self:
        """Return the connection, which is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connection; a running command sees the end of its input."""
        self._client.close()

    def run(self, command: list[str], *, text: str = "", within: float = 60) -> CommandResult:
        """Run a command as root with `text` as its input, and wait for its end.

        Raises:
            Unreachable: the connection was lost, or the command took longer than `within` seconds.
            Unavailable: the output is too long.
        """
        with self._started(command) as channel:
            channel.sendall(text.encode())
            channel.shutdown_write()
            return _until_the_end(channel, within)

    def lines(self, command: list[str]) -> Iterator[str]:
        """Yield the lines that a command prints, without a time limit; overlong lines are split.

        Raises:
            Unreachable: the connection was lost.
        """
        with self._started(command) as channel:
            channel.settimeout(None)
            with channel.makefile("rb") as file:
                while line := file.readline(_PIECE):
                    yield bytes(line).decode(errors="replace").rstrip("\r\n")
            if channel.transport is None or not channel.transport.is_active():
                raise Unreachable("the connection was lost")

    def start(self, command: list[str]) -> InteractiveCommand:
        """Start a command for a dialogue over its input and output."""
        return InteractiveCommand(self._started(command), self.seconds)

    def _started(self, command: list[str]) -> paramiko.Channel:
        line = shlex.join(["sudo", "-n", "--", *command] if self.host.become else command)
        try:
            transport = self._client.get_transport()
            if transport is None:
                raise Unreachable("the connection is closed")
            channel = transport.open_session(timeout=self.seconds)
            channel.settimeout(self.seconds)
            channel.exec_command(line)
        except (SSHException, TimeoutError, OSError) as error:
            raise Unreachable(f"the connection was lost: {error}") from error
        return channel


class InteractiveCommand:
    """A running command with its input and output."""

    def __init__(self, channel: paramiko.Channel, seconds: float) -> None:
        self._channel = channel
        self._file = channel.makefile("rb")
        channel.settimeout(seconds)

    def __enter__(self) -> Self:
        """Return the command, whose connection is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self._channel.close()

    def send(self, data: bytes) -> None:
        """Write all of `data` to its input; `Unreachable` if that fails."""
        try:
            self._channel.sendall(data)
        except (OSError, SSHException) as error:
            raise Unreachable(f"it stopped accepting data: {error}") from error

    def receive_line(self) -> str:
        """Read the next line; `Unavailable` with the error output if the command has ended."""
        try:
            line = self._file.readline(MAX_ANSWER_BYTES)
        except (OSError, SSHException) as error:
            raise Unreachable(f"it stopped answering: {str(error) or 'timeout'}") from error
        if not line:
            said = bytes(self._channel.makefile_stderr("rb").read(_PIECE)).decode(errors="replace").strip()
            raise Unavailable(f"the command ended: {said[-2000:]}")
        return bytes(line).decode(errors="replace")


def _until_the_end(channel: paramiko.Channel, within: float) -> CommandResult:
    deadline = time.monotonic() + within
    parts: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
    receives: dict[str, Callable[[int], bytes]] = {"out": channel.recv, "err": channel.recv_stderr}
    for name, receive in receives.items():
        while True:
            channel.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                piece = receive(_PIECE)
            except TimeoutError as error:
                raise Unreachable(f"the command did not end within {within:g} s") from error
            except (OSError, SSHException) as error:
                raise Unreachable(f"the connection was lost: {error}") from error
            if not piece:
                break
            parts[name] += piece
            if len(parts[name]) > MAX_ANSWER_BYTES:
                raise Unavailable(f"the command prints more than {MAX_ANSWER_BYTES >> 20} MiB")
    if not channel.status_event.wait(max(0.01, deadline - time.monotonic())):
        raise Unreachable(f"the command did not end within {within:g} s")
    out, err = (bytes(parts[name]).decode(errors="replace") for name in ("out", "err"))
    return CommandResult(channel.recv_exit_status(), out, err)


def _settings_of(host: Host) -> paramiko.SSHConfigDict:
    path = Path("~/.ssh/config").expanduser()
    config = paramiko.SSHConfig.from_path(str(path)) if path.exists() else paramiko.SSHConfig()
    return config.lookup(host.reached_at)
