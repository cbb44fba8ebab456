"""The whole laboratory: hosts, network and control machine, made together and taken away together.

All that a run leaves on this machine carries its name – a folder below runs/, a network, a group of processes, mounts –
and a lock on the folder says that the run lives. So the next run can clear up after one that was killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

from cgroup import ControlGroup
from commands import call
from control import Control
from host import Host
from image import CACHE, bare_image
from network import Network, networks

PREFIX = "fedsim-lab-"
PROPAGATED = Path("/run/systemd/nspawn/propagate")  # systemd-nspawn leaves a folder for each machine
HOSTS = {"server": "198.18.0.10", "node-a": "198.18.0.11", "node-b": "198.18.0.12"}


@dataclass
class Laboratory:
    """Made by `with`; its hosts are switched on by `boot`."""

    folder: Path
    lock: TextIO
    network: Network
    control: Control
    hosts: dict[str, Host]

    @classmethod
    def planned(cls, images: Mapping[str, Path] | None = None) -> Self:
        """A new one, of which nothing is there yet but its locked folder.

        Args:
            images: of its hosts, by their names; None for Debian 12 on all that there can be.
        """
        sweep()
        name = f"{PREFIX}{os.getpid()}"
        folder = CACHE / "runs" / name
        folder.mkdir(parents=True)
        lock = (folder / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        network, group = Network(name), ControlGroup(name)
        hosts = {
            host: Host(host, HOSTS[host], folder / host, image, network, group.child(host))
            for host, image in (images or dict.fromkeys(HOSTS, bare_image())).items()
        }
        return cls(folder, lock, network, Control(folder / "home", network, group.child("control")), hosts)

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> Self:
        try:
            self.network.make()
            key = self.control.make()
            for host in self.hosts.values():
                self.control.knows(host.address, host.make(key))
        except BaseException:
            self.__exit__()
            raise
        return self

    def boot(self) -> None:
        """Switch all hosts on, at the same time."""
        for host in self.hosts.values():
            host.start()
        for host in self.hosts.values():
            host.await_boot()

    def __exit__(self, *exception: object) -> None:
        ControlGroup(self.folder.name).end()
        for host in self.hosts.values():
            host.forget()
        self.lock.close()
        clear(self.folder)


def sweep() -> None:
    """Clear up after runs that were killed."""
    runs = CACHE / "runs"
    for folder in runs.glob(f"{PREFIX}*"):
        with (folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # it lives
        clear(folder)


def clear(folder: Path) -> None:
    """Take away all that carries the name of this run."""
    ControlGroup(folder.name).end()
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    for mount in reversed(mounts):
        if Path(mount).is_relative_to(folder):
            call(["umount", mount])
    for network in networks(folder.name):
        network.remove()
    for left in PROPAGATED.glob(f"{folder.name}-*"):
        left.rmdir()
    shutil.rmtree(folder)
