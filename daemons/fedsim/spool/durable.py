"""Durable writes: temporary name, fsync of the file, rename, fsync of the folder.

After any of these functions returns, a power cut leaves either the whole new file or (before it returned) the old one,
never a part. Temporary names begin with a dot, which everything that lists the spool skips.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY_SUFFIX = ".tmp"
FOLDER_MODE = 0o700
FILE_MODE = 0o600


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create `folder` and what is missing above it, owner only, durably; an existing one is left as it is."""
    missing: list[Path] = []
    here = folder
    while not here.is_dir():
        missing.append(here)
        here = here.parent
    for path in reversed(missing):
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
        sync_folder(path.parent)


def move_into_place(temporary: Path, final: Path) -> None:
    """Rename a file that is already synced to its final name, and make the name durable. This is the commit.

    The final folder is created if it is missing, even if another process removes it meanwhile. The process that waits
    for the file may have used it and removed the folder before the name is durable: then nothing is left to sync.
    """
    for last_try in (False, False, True):
        try:
            make_folder(final.parent)
            temporary.rename(final)
        except FileNotFoundError:
            if last_try or not temporary.exists():
                raise
        else:
            break
    with suppress(FileNotFoundError):
        sync_folder(final.parent)


@contextmanager
def replacing(final: Path, mode: int = FILE_MODE, by_way_of: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write to, which durably gets the name `final` if the block succeeds and is removed otherwise.

    Until then it is next to `final`; or in `by_way_of`, if another process may remove that folder meanwhile.
    """
    folder = by_way_of or final.parent
    make_folder(folder)
    temporary = folder / f".{final.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            yield file
            os.fsync(file.fileno())
        move_into_place(temporary, final)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # those of writing and syncing name no file
            error.filename = str(final)
        with suppress(OSError):  # the first error says more
            temporary.unlink(missing_ok=True)
        raise


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of `data` to an unbuffered file, whose `write` may take only a part."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def write_bytes(final: Path, data: bytes, mode: int = FILE_MODE, by_way_of: Path | None = None) -> None:
    """Durably write a small file; `mode` is what the process's umask leaves of it, for `by_way_of` see `replacing`."""
    with replacing(final, mode, by_way_of) as file:
        write_all(file, data)


def write_json(final: Path, value: Any, mode: int = FILE_MODE) -> None:
    """Durably write `value` as JSON; NaN and Inf are errors, as JSON has none."""
    write_bytes(final, json.dumps(value, allow_nan=False, ensure_ascii=False).encode(), mode)


def remove_file(path: Path) -> None:
    """Remove a file if it is there."""
    path.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder with everything in it if it is there; a symbolic link is removed, never followed.

    It is renamed first, so that what another process creates under the old name meanwhile is kept. A sweep (see
    `clear_leftovers`) may remove a part of it at the same time, and a process that found the folder before that may
    still create a file in it.
    """
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
        return
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    while aside.exists():
        try:
            shutil.rmtree(aside)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
