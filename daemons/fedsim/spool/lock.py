"""The right to a folder: at most one process of a kind uses a spool."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fedsim.errors import Unavailable


class FolderLock:
    """A lock of the kernel, which ends with the process that holds it."""

    def __init__(self, folder: Path, program: str, spool: Path) -> None:
        """Lock `folder` for this process.

        Args:
            folder: in the spool, or the spool itself.
            program: the kind of process, for people.
            spool: what is used, for people.

        Raises:
            Unavailable: another process has it.
        """
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise Unavailable(
                f"another {program} uses the spool {spool}: stop it, or give this one a spool of its own"
            ) from error

    def close(self) -> None:
        """Leave the folder to another process."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
