"""Which versions of fedsim computed a task, on the server and on each node: with more than one it is not comparable.

globalparam/<uid>/versions.json; it only ever grows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fedsim.server.task_dir import TaskDir
from fedsim.state_machines.plan import Plan


class TaskVersions:
    """The versions of one task's workers."""

    def __init__(self, plan: Plan, folder: TaskDir) -> None:
        self._plan = plan
        self._folder = folder
        self._versions = folder.read_versions()

    def worked(self, who: str, versions: Iterable[str]) -> str | None:
        """Workers of these versions work for the task, on `who`. Returns what is to be told, if that is worth it."""
        known = set(self._versions.get(who, ()))
        together = known | set(versions)
        if together == known:
            return None
        self._versions[who] = sorted(together)
        self._folder.write_versions(self._versions)
        if together - known == {self._plan.version}:
            return None
        others = ", ".join(sorted(together - known))
        return f"the workers on {who} are of version {others}; the task began under {self._plan.version}"

    def about(self) -> dict[str, Any]:
        """What stands of them in the JSON beside a checkpoint."""
        taken = sorted({self._plan.version, *(version for some in self._versions.values() for version in some)})
        mixed = f"computed by workers of several versions of fedsim: {', '.join(taken)}" if len(taken) > 1 else None
        return {"version": self._plan.version, "versions": self._versions, "not_comparable": mixed}
