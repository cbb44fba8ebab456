"""A host reached over SSH: known by its key, within a time, and never believed further than that.

What people have set for OpenSSH counts here too: `~/.ssh/config` (HostName, Port, User, IdentityFile,
UserKnownHostsFile), known_hosts, the agent.
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

# It logs with a traceback what it raises as well, and we tell.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)
MAX_ANSWER_BYTES = 4 << 20
_PIECE = 1 << 16


class Unreachable(Unavailable):
    """A host does not answer, is not who it was, or does not let us in; the text says what to do."""


@dataclass(frozen=True)
class Answer:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    def text(self) -> str:
        """What it printed; `Unavailable` with what it complained of if it failed."""
        if self.code:
            raise Unavailable(f"ended with {self.code}: {(self.err or self.out).strip()[-2000:]}")
        return self.out


class Connection:
    """An open connection. Every wait has an end: `seconds` without a sign of life, or the deadline of a command."""

    def __init__(self, host: Host, seconds: float) -> None:
        """Connect and log in.

        Raises:
            Unreachable: it cannot be done within `seconds`.
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
                f"it shows another key than known_hosts has for {where}: either it was installed anew (then: "
                f"ssh-keygen -R '{where}' and log in once by hand), or somebody else answers there"
            ) from error
        except paramiko.AuthenticationException as error:
            raise Unreachable(f"it does not let us in ({error}): put your public key into authorized_keys") from error
        except (NoValidConnectionsError, TimeoutError) as error:
            raise Unreachable(
                f"nobody answers at {where} within {self.seconds:g} s: is it up, and the cable in?"
            ) from error
        except SSHException as error:
            if "not found in known_hosts" in str(error):
                raise Unreachable(f"its key is not known: log in once by hand (ssh {where}) and compare it") from error
            raise Unreachable(f"SSH to {where} fails: {error}") from error
        except OSError as error:
            raise Unreachable(f"{where} cannot be reached: {error.strerror or error}") from error
        transport = self._client.get_transport()
        if transport is not None and isinstance(transport.sock, socket.socket):
            transport.set_keepalive(max(1, int(self.seconds)))
            # Whoever only listens notices a pulled cable by this: by what it sends to stay alive, and nobody takes.
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.seconds * 1000))

    def __enter__(self) -> Self:
        """Itself; it is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Hang up; what runs there sees the end of its input."""
        self._client.close()

    def run(self, command: list[str], *, text: str = "", within: float = 60) -> Answer:
        """Run a command as root to its end, `text` being its input.

        Raises:
            Unreachable: the host went away, or it took longer than `within` seconds.
            Unavailable: it printed too much.
        """
        with self._started(command) as channel:
            channel.sendall(text.encode())
            channel.shutdown_write()
            return _until_the_end(channel, within)

    def lines(self, command: list[str]) -> Iterator[str]:
        """The lines that a command prints, as they come, however long it runs; an overlong one is cut.

        Raises:
            Unreachable: the host went away.
        """
        with self._started(command) as channel:
            channel.settimeout(None)
            with channel.makefile("rb") as file:
                while line := file.readline(_PIECE):
                    yield bytes(line).decode(errors="replace").rstrip("\r\n")
            if channel.transport is None or not channel.transport.is_active():
                raise Unreachable("it went away")

    def talk(self, command: list[str]) -> Talk:
        """Run a command that is asked and answers, line by line."""
        return Talk(self._started(command), self.seconds)

    def _started(self, command: list[str]) -> paramiko.Channel:
        line = shlex.join(["sudo", "-n", "--", *command] if self.host.become else command)
        try:
            transport = self._client.get_transport()
            if transport is None:
                raise Unreachable("the connection is gone")
            channel = transport.open_session(timeout=self.seconds)
            channel.settimeout(self.seconds)
            channel.exec_command(line)
        except (SSHException, TimeoutError, OSError) as error:
            raise Unreachable(f"it went away: {error}") from error
        return channel


class Talk:
    """A command's input and output while it runs."""

    def __init__(self, channel: paramiko.Channel, seconds: float) -> None:
        self._channel = channel
        self._file = channel.makefile("rb")
        channel.settimeout(seconds)

    def __enter__(self) -> Self:
        """Itself; it is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self._channel.close()

    def say(self, data: bytes) -> None:
        """Send it all; `Unreachable` if the host does not take it."""
        try:
            self._channel.sendall(data)
        except (OSError, SSHException) as error:
            raise Unreachable(f"it stopped taking data: {error}") from error

    def hear(self) -> str:
        """The next line; `Unavailable` if the command ended instead, with what it complained of."""
        try:
            line = self._file.readline(MAX_ANSWER_BYTES)
        except (OSError, SSHException) as error:
            raise Unreachable(f"it stopped answering: {str(error) or 'nothing came'}") from error
        if not line:
            said = bytes(self._channel.makefile_stderr("rb").read(_PIECE)).decode(errors="replace").strip()
            raise Unavailable(f"the command there ended: {said[-2000:]}")
        return bytes(line).decode(errors="replace")


def _until_the_end(channel: paramiko.Channel, within: float) -> Answer:
    deadline = time.monotonic() + within
    parts: dict[str, bytearray] = {"out": bytearray(), "err": bytearray()}
    receives: dict[str, Callable[[int], bytes]] = {"out": channel.recv, "err": channel.recv_stderr}
    for name, receive in receives.items():
        while True:
            channel.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                piece = receive(_PIECE)
            except TimeoutError as error:
                raise Unreachable(f"the command there has not ended in {within:g} s") from error
            except (OSError, SSHException) as error:
                raise Unreachable(f"it went away: {error}") from error
            if not piece:
                break
            parts[name] += piece
            if len(parts[name]) > MAX_ANSWER_BYTES:
                raise Unavailable(f"the command there prints more than {MAX_ANSWER_BYTES >> 20} MiB")
    if not channel.status_event.wait(max(0.01, deadline - time.monotonic())):
        raise Unreachable(f"the command there has not ended in {within:g} s")
    out, err = (bytes(parts[name]).decode(errors="replace") for name in ("out", "err"))
    return Answer(channel.recv_exit_status(), out, err)


def _settings_of(host: Host) -> paramiko.SSHConfigDict:
    path = Path("~/.ssh/config").expanduser()
    config = paramiko.SSHConfig.from_path(str(path)) if path.exists() else paramiko.SSHConfig()
    return config.lookup(host.reached_at)
