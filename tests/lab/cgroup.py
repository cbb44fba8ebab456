"""Groups of processes (cgroups): a process and all that it has started can be ended together, also by a later run."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
# A machine with version 1 has two trees in which a systemd keeps its services, and a host needs a place of its own in
# both: two hosts in one tree take each other's folders away. With version 2 there is one.
TREES = [path for path in (MOUNT / "systemd", MOUNT / "unified") if path.is_dir()] or [MOUNT]
ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit; shift; done; shift; exec "$@"'


@dataclass(frozen=True)
class ControlGroup:
    """A folder of this name in each tree."""

    name: str

    @property
    def folders(self) -> list[Path]:
        return [tree / self.name for tree in TREES]

    def child(self, name: str) -> ControlGroup:
        return ControlGroup(f"{self.name}/{name}")

    def entering(self, command: list[str]) -> list[str]:
        """The command, run as a member."""
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
        return ["/bin/sh", "-c", ENTER, "sh", *map(str, self.folders), "--", *command]

    def members(self) -> set[int]:
        """Ids of all processes, also in groups further down."""
        files = (file for folder in self.folders for file in folder.rglob("cgroup.procs"))
        return {int(pid) for file in files for pid in file.read_text().split()}

    def end(self) -> None:
        """Kill every member, wait until it is gone, and remove the group."""
        while members := self.members():
            for pid in members:
                with suppress(ProcessLookupError):
                    _kill(pid)
        for folder in self.folders:
            if folder.is_dir():
                for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
                    inner.rmdir()
                folder.rmdir()


def _kill(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [])
    finally:
        os.close(descriptor)
