"""Free space on the disk. Without it nothing is lost: a daemon suspends its tasks and resumes them later."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.errors import DiskFull

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def full_disk_errors() -> Iterator[None]:
    """Turn the errors of a full disk (or quota) into `DiskFull`; every other error passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        where = f" for {error.filename}" if error.filename else ""
        raise DiskFull(f"no space is left on the disk{where}: free some, then it continues") from error


def has_space(folder: Path, least_bytes: int) -> bool:
    """Whether the disk of `folder` has at least this many bytes free."""
    return shutil.disk_usage(folder).free >= least_bytes
