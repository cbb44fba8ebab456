"""The control machine of the laboratory: processes of this machine that see the lab's network and nothing else."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cgroup import ControlGroup
from commands import call
from network import Network

SSH_SECONDS = 10


@dataclass(frozen=True)
class Control:
    """The user who may log in to every host as root, with a key of this run. Hosts are known by their keys."""

    home: Path
    network: Network
    group: ControlGroup

    @property
    def ssh_config(self) -> Path:
        return self.home / ".ssh" / "config"

    def make(self) -> str:
        """Make the key; returns its public half."""
        folder = self.ssh_config.parent
        folder.mkdir(parents=True, mode=0o700)
        key = folder / "id_ed25519"
        call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "control", "-f", str(key)])
        self.ssh_config.write_text(
            "Host *\n"
            f"  User root\n  IdentityFile {key}\n  IdentitiesOnly yes\n  BatchMode yes\n"
            f"  UserKnownHostsFile {folder / 'known_hosts'}\n  GlobalKnownHostsFile none\n"
            f"  StrictHostKeyChecking yes\n  ConnectTimeout {SSH_SECONDS}\n",
            encoding="utf-8",
        )
        return key.with_suffix(".pub").read_text(encoding="utf-8")

    def knows(self, address: str, public_key: str) -> None:
        """Believe that the host at this address has this key."""
        with (self.ssh_config.parent / "known_hosts").open("a", encoding="utf-8") as file:
            file.write(f"{address} {public_key}")

    @property
    def environment(self) -> dict[str, str]:
        """A plain one: nothing of the tests' own environment changes what a lab's owner sees."""
        return {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "ANSIBLE_SSH_ARGS": f"-F {self.ssh_config} -o ControlMaster=auto -o ControlPersist=60s",
        }

    def placed(self, *command: str) -> list[str]:
        """The command as a process of the control machine."""
        return self.group.entering(self.network.entering(list(command)))

    def run(
        self, *command: str, seconds: float = 120, check: bool = True, text: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in the lab's network."""
        around = {**self.environment, **environment}
        return call(self.placed(*command), seconds=seconds, check=check, text=text, environment=around)

    def ssh(self, address: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, as a lab's owner does."""
        return self.run("ssh", "-F", str(self.ssh_config), address, *command, check=check)
