"""Under which version of fedsim a task began on this node, and which versions' workers computed it since.

localparam/<uid>/begun.json: written when the task is first taken on, and gone with the task.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from fedsim import __version__
from fedsim.spool.durable import write_json


class TaskWorkerVersions:
    """What one task began with."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the task's under `localparam`."""
        self._path = folder / "begun.json"
        try:
            content = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            content = {"version": __version__, "versions": []}
        self.version: str = content["version"]
        self.versions: list[str] = content["versions"]

    def worked(self, versions: Collection[str]) -> list[str]:
        """Workers of these versions work for the task; returns those that are new and not the first one's."""
        new = sorted(set(versions) - set(self.versions))
        if new:
            self.versions = sorted({*self.versions, *new})
            write_json(self._path, {"version": self.version, "versions": self.versions})
        return [version for version in new if version != self.version]
