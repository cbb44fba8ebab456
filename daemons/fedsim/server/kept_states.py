"""The states of tasks that have ended: failed and stopped ones can be resumed, completed ones get more rounds.

resumable/task-000003/    what the task's folder held when it ended (see `task_dir`): the plan, the examples of each
                          client, the phases that are complete, the newest committed round, and those that were still to
                          be tested or saved. Files of rounds are hard links.

A resumed task has another uid, which is in the kept plan: what is still under way of its first run – a stop, an update,
a report – does not concern it. The row names the uid as well, so that what is kept and what can be resumed agree. The
plan also names the first run's uid, by which nodes find what their clients keep (`fedsim.spool.client_states`).
The updates of the round that was under way, its roster and a node's test set are not kept: the nodes send them again.
"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from fedsim.errors import BadInput, DamagedFile
from fedsim.server.task_dir import TaskDir
from fedsim.spool.durable import make_folder, remove_tree, sync_folder
from fedsim.store.records import Resumable

KEPT = "resumable"


class KeptStates:
    """The folders of the tasks that can be resumed. Every method can be repeated after a crash."""

    def __init__(self, spool: Path) -> None:
        self._root = spool / KEPT

    def numbers(self) -> list[int]:
        """The tasks of which a state is kept."""
        found = self._root.glob("task-*") if self._root.is_dir() else ()
        return sorted(int(path.name.removeprefix("task-")) for path in found)

    def keep(self, number: int, folder: TaskDir, *, completed: bool = False) -> Resumable:
        """Keep the state of a task that has ended, as far as there is one; one that is `completed` can be continued."""
        try:
            return self._keep(number, folder, completed=completed)
        except (BadInput, DamagedFile) as error:
            return Resumable(problem=str(error))

    def _keep(self, number: int, folder: TaskDir, *, completed: bool) -> Resumable:
        committed, plan = folder.committed(), folder.raw_plan()
        if plan is None or not committed:
            return Resumable(problem="it ended before its first model was made")
        uid = uuid4().hex
        new = TaskDir(self._root, f".task-{number:06d}.new")
        new.remove()
        # A task that ended early may get as many rounds as it was to have: then the settings stay the same.
        after = {"continued_after": committed[-1]} if completed else {}
        folder.copy_to(new, {**plan, "task": uid, "resumes": plan["task"], **after})
        self.drop(number)
        new.path.rename(self._path(number))
        sync_folder(self._root)
        return Resumable(uid=uid, round=committed[-1])

    def restore(self, number: int, folder: TaskDir, num_rounds: int) -> bool:
        """Move the state of a task that is resumed to its folder; returns whether it is there.

        `num_rounds` are those of the task's row: more than before if a completed task is continued.
        """
        path = self._path(number)
        kept = TaskDir(self._root, path.name)
        plan = kept.raw_plan()
        if plan is None or plan["task"] != folder.path.name:
            return False
        if plan["settings"].get("num_rounds") != num_rounds:
            settings = {**plan["settings"], "num_rounds": num_rounds}
            kept.write_raw_plan({**plan, "settings": settings, "continued_after": kept.committed()[-1]})
        make_folder(folder.path.parent)
        path.rename(folder.path)
        sync_folder(folder.path.parent)
        sync_folder(self._root)
        return True

    def drop(self, number: int) -> None:
        """Remove the state of a task, if one is kept."""
        remove_tree(self._path(number))

    def _path(self, number: int) -> Path:
        return self._root / f"task-{number:06d}"
