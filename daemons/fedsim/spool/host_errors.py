"""Errors of the operating system that concern every task of a host: a full, read-only or failing disk, no descriptors.

Nothing is lost with them: a daemon suspends its tasks, and resumes them when `check_usable` finds that files can be
written again.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fedsim.errors import DiskFull, HostTrouble, Unavailable
from fedsim.spool.durable import TEMPORARY_SUFFIX, write_bytes

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_DISK: Final = frozenset({errno.EROFS, errno.EIO, errno.ESTALE})
_LIMITS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


def as_unavailable(error: OSError) -> Unavailable | None:
    """The error as one that suspends tasks; None if it concerns one file or one peer alone."""
    path = None if error.filename is None else Path(os.fsdecode(error.filename))
    where = "" if path is None else f" of {path.parent}"
    if error.errno in _FULL:
        return DiskFull(f"no space is left on the disk{where}: free some, then it continues", _folder(path))
    if error.errno in _DISK:
        # Only a disk that cannot be written to is tried again by writing: data may be on one that never can.
        folder = _folder(path) if error.errno == errno.EROFS else None
        return HostTrouble(f"{error.strerror}: check the disk{where}; tasks continue as soon as it works", folder)
    if error.errno in _LIMITS:
        named = "" if path is None else f" ({path})"
        return HostTrouble(f"{error.strerror}{named}: this host is at a limit; tasks continue as soon as it is not")
    return None


@contextmanager
def host_errors() -> Iterator[None]:
    """Turn errors of the operating system that concern every task into `Unavailable`; all others pass unchanged."""
    try:
        yield
    except OSError as error:
        if (unavailable := as_unavailable(error)) is None:
            raise
        raise unavailable from error


def check_usable(folder: Path, least_bytes: int) -> None:
    """Check that a file can be written in `folder` (above it, if it was removed), and that its disk has the bytes free.

    Raises:
        DiskFull, HostTrouble: with what is wrong, and how much space is needed.
    """
    folder = _existing(folder)
    with host_errors():
        if shutil.disk_usage(folder).free < least_bytes:
            raise full_disk(folder, least_bytes)
        probe = folder / f".probe.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        try:
            write_bytes(probe, b"x" * 4096)
        finally:
            probe.unlink(missing_ok=True)


def full_disk(folder: Path, least_bytes: int) -> DiskFull:
    """The disk of `folder` is full, and this many free bytes are waited for."""
    return DiskFull(f"the disk of {folder} is full: waiting for {least_bytes} free bytes", folder)


def _folder(path: Path | None) -> Path | None:
    return None if path is None else _existing(path.parent)


def _existing(folder: Path) -> Path:
    """The folder, or the one above it that is there."""
    return next((path for path in (folder, *folder.parents) if path.is_dir()), folder)
