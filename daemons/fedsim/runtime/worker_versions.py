"""The versions of fedsim whose workers computed a task: with more than one, its result is not comparable with others.

versions.json in the task's folder: the version that the task started under, and those of the workers on each host.
It only ever grows, and is cleared with the task.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedsim import __version__
from fedsim.spool.sealed import read_sealed, write_sealed


class WorkerVersions:
    """The versions of one task's workers."""

    def __init__(self, path: Path, version: str, hosts: dict[str, list[str]]) -> None:
        self.version = version
        self.hosts = hosts
        self._path = path

    @classmethod
    def open(cls, folder: Path, version: str | None = None) -> WorkerVersions:
        """Read what is recorded in a task's folder; `version` is the one that the task started under, if known."""
        path = folder / "versions.json"
        content = read_sealed(path) or {"version": __version__, "hosts": {}}
        return cls(path, version or content["version"], content["hosts"])

    def add(self, host: str, versions: Iterable[str]) -> list[str]:
        """Note workers of these versions; returns the new ones, which `write` then stores."""
        new = sorted({*versions} - {*self.hosts.get(host, ())})
        if new:
            self.hosts = {**self.hosts, host: sorted({*self.hosts.get(host, ()), *new})}
        return new

    def write(self) -> None:
        """Durably record the versions."""
        write_sealed(self._path, {"version": self.version, "hosts": self.hosts})

    def about(self) -> dict[str, Any]:
        """The versions, for a checkpoint."""
        versions = self.all
        mixed = f"computed by workers of several versions of fedsim: {', '.join(versions)}"
        not_comparable = mixed if len(versions) > 1 else None
        return {"version": self.version, "versions": self.hosts, "not_comparable": not_comparable}

    @property
    def all(self) -> list[str]:
        """Every version that the task was started under or computed by."""
        return sorted({self.version, *(version for versions in self.hosts.values() for version in versions)})
