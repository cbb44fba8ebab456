"""The files that tasks start from: checkpoints of earlier tasks, and files of an administrator.

initial/DIGEST.safetensors    a hard link to a checkpoint from which an unfinished task starts, by the file's digest

So that task does not depend on the earlier one, which may be deleted meanwhile, or whose checkpoints may be removed by
age. A link is made when the server reads the task, and removed once no unfinished task names it. An administrator's
file is used where it is; a task that finds it changed fails with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fedsim.initial import InitialFile, InitialModel
from fedsim.server.projection import checkpoint_name
from fedsim.spool.durable import make_folder, remove_file, sync_folder

LINKED = "initial"


class InitialFiles:
    """The folder of links; `models` is the administrator's, `checkpoints` that of all tasks."""

    def __init__(self, spool: Path, checkpoints: Path) -> None:
        self._root = spool / LINKED
        self._checkpoints = checkpoints

    def keep(self, needed: Iterable[InitialModel]) -> None:
        """Link the checkpoints from which unfinished tasks start, as far as they exist, and remove other links."""
        wanted = {self._link(initial): initial for initial in needed if initial.source == "task"}
        for path in self._root.glob("*.safetensors") if self._root.is_dir() else ():
            if path not in wanted:
                remove_file(path)
        for path, initial in wanted.items():
            if not path.exists():
                make_folder(self._root)
                with suppress(FileNotFoundError, FileExistsError):  # it was removed, and the task fails with that
                    os.link(self._checkpoint(initial), path)
                sync_folder(self._root)

    def file(self, initial: InitialModel, models: Path) -> InitialFile:
        """The file with the first model; a worker checks that it is there and has the recorded digest."""
        if initial.source == "file":
            path = models / (initial.file or "")
        else:
            path = self._link(initial)
            if not path.exists():
                path = self._checkpoint(initial)
        return InitialFile(path=path, digest=initial.digest, source=str(initial))

    def _link(self, initial: InitialModel) -> Path:
        return self._root / f"{initial.digest}.safetensors"

    def _checkpoint(self, initial: InitialModel) -> Path:
        return self._checkpoints / checkpoint_name(initial.task or 0, initial.round or 0)
