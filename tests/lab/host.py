"""A host of the laboratory: a real systemd with an address of its own, on an overlay over the bare image."""

from __future__ import annotations

import os
import select
import shlex
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from cgroup import ControlGroup
from commands import CommandError, call
from image import SUDOER
from network import PREFIX, Network

BOOT_SECONDS = 60
# systemd 256 and 257 boot on this machine's older cgroups only if they are asked to; others ignore it.
INIT = "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
NSPAWN = [
    "systemd-nspawn",
    "--quiet",
    "--boot",
    "--register=no",
    "--keep-unit",
    "--link-journal=no",
    "--console=pipe",
    "--notify-ready=yes",
]


@dataclass
class Host:
    """One machine. What it writes stays in `folder` over every boot, as on a disk."""

    name: str
    address: str
    folder: Path
    image: Path
    network: Network
    group: ControlGroup
    boot_seconds: float = 0.0
    _init: int = field(default=0, repr=False)
    _nspawn: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def root(self) -> Path:
        """The host's file system, as it sees it."""
        return self.folder / "root"

    @property
    def console(self) -> Path:
        """What the host said while it booted, for when something fails."""
        return self.folder / "console"

    @property
    def running(self) -> bool:
        return self._nspawn is not None

    def make(self, authorized_key: str) -> str:
        """Set a new machine up; root and the sudoer log in with `authorized_key`. Returns its own public key."""
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir(parents=True)
        layers = f"lowerdir={self.image},upperdir={self.folder / 'upper'},workdir={self.folder / 'work'}"
        # volatile: what is written here need not survive this machine, so nothing waits for its disk.
        call(["mount", "-t", "overlay", "overlay", "-o", f"{layers},volatile", str(self.root)])
        self._write("etc/machine-id", f"{uuid4().hex}\n")
        self._write("etc/hostname", f"{self.name}\n")
        self._write("etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        address = f"[Network]\nAddress={self.address}/{PREFIX}\n"
        self._write("etc/systemd/network/10-lab.network.d/address.conf", address)
        for home in ("root", f"home/{SUDOER}"):
            self._write(f"{home}/.ssh/authorized_keys", authorized_key)
        key = self.root / "etc/ssh/ssh_host_ed25519_key"
        call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key)])
        return key.with_suffix(".pub").read_text(encoding="utf-8")

    def _write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def written_files(self) -> set[str]:
        """Names of all files and folders that the machine has and its image has not."""
        upper = self.folder / "upper"
        here = {path.relative_to(upper) for path in upper.rglob("*") if not path.is_char_device()}
        return {str(path) for path in here if not os.path.lexists(self.image / path)}

    def start(self) -> None:
        """Switch the machine on; it boots while others do."""
        self._began = time.monotonic()
        where = self.folder / "notify"
        where.unlink(missing_ok=True)
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._told.bind(str(where))
        command = [*NSPAWN, f"--directory={self.root}", f"--hostname={self.name}", *self.network.cable(self.name), INIT]
        with self.console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                self.group.entering(self.network.entering(command)),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, "NOTIFY_SOCKET": str(where)},
                start_new_session=True,  # ^C at the terminal is the tests' business
            )

    def await_boot(self) -> None:
        """Return when systemd says that everything that boots with the machine has started."""
        assert self._nspawn is not None
        ended = os.pidfd_open(self._nspawn.pid)
        try:
            while "READY=1" not in (told := self._next_word(ended)):
                if "X_NSPAWN_LEADER_PID" in told:
                    self._init = int(told["X_NSPAWN_LEADER_PID"])
        finally:
            os.close(ended)
            self._told.close()  # what is no longer read would stop the machine's systemd once the queue is full
        self.boot_seconds = time.monotonic() - self._began

    def _next_word(self, ended: int) -> dict[str, str]:
        left = max(0.0, self._began + BOOT_SECONDS - time.monotonic())
        ready, _, _ = select.select([self._told, ended], [], [], left)
        if self._told not in ready:
            why = "ended" if ready else f"has not booted in {BOOT_SECONDS} s"
            waiting = self.run("systemctl", "list-jobs", check=False) if self._init and not ready else ""
            console = self.console.read_text(encoding="utf-8", errors="replace")[-4000:]
            raise CommandError(f"{self.name} {why}; its console:\n{console}\n{waiting}")
        lines = self._told.recv(4096).decode().splitlines()
        words = dict(line.partition("=")[::2] for line in lines)
        return {**words, **({"READY=1": ""} if words.get("READY") == "1" else {})}

    def boot(self) -> None:
        """Switch on, and wait until the machine is up."""
        self.start()
        self.await_boot()

    def run(self, *command: str, seconds: float = 60, check: bool = True, text: str = "") -> str:
        """Run a command inside, as root at the machine itself; returns what it printed."""
        assert self._init, f"{self.name} is switched off"
        return call(["nsenter", "-t", str(self._init), "-a", *command], seconds=seconds, check=check, text=text).stdout

    def journal(self, *matches: str) -> str:
        """What the journal holds, for example `journal("FEDSIM_TASK=1")`."""
        return self.run("journalctl", "--no-pager", "--quiet", "--output=short-precise", *matches)

    def await_journal(self, text: str, *matches: str) -> None:
        """Return once the journal of this boot holds a line with this text."""
        command = shlex.join(["journalctl", "--quiet", "--boot", "--lines=all", "--follow", *matches])
        self.run("bash", "-c", f'grep --quiet --max-count 1 --fixed-strings -- "$1" < <({command} 2>&1)', "bash", text)

    def shut_down(self) -> None:
        """Switch off in order, as `systemctl poweroff` does."""
        self.run("systemctl", "poweroff")
        self._gone()

    def reboot(self) -> None:
        """Shut down and boot again."""
        self.shut_down()
        self.boot()

    def power_cut(self) -> None:
        """All processes are gone at once; what had been written stays."""
        assert self._init, f"{self.name} is switched off"
        os.kill(self._init, signal.SIGKILL)
        self._gone()

    def _gone(self) -> None:
        assert self._nspawn is not None
        self._nspawn.wait(BOOT_SECONDS)
        self._nspawn, self._init = None, 0

    def forget(self) -> None:
        """The machine's processes have been ended from outside."""
        if self.running:
            self._gone()
