"""Wakes a daemon when files arrive, with inotify. Events are only hints: the folders are the record."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path

from inotify_simple import INotify, flags

from fedsim.errors import WatchLimit

_ARRIVALS = flags.MOVED_TO | flags.CREATE | flags.ONLYDIR | flags.EXCL_UNLINK
_WRITTEN = flags.CLOSE_WRITE | flags.DELETE | flags.MOVED_FROM


@dataclass(frozen=True)
class Changes:
    """What a watch noticed: `files` that were added (or changed), and `folders` that must be scanned."""

    files: set[Path] = field(default_factory=set)
    folders: set[Path] = field(default_factory=set)


class Watch:
    """Watches folders and all that is created below them; `fileno()` becomes readable when files were renamed into one.

    Use it in a selector; then process what `drain()` returns. Scan everything once *after* creating the watch and
    before waiting: earlier files cause no event.

    With `written` it also becomes readable when a file was written in place or removed, and `drain` returns these
    files: data sets are copied that way.

    Raises:
        WatchLimit: a limit of the kernel is reached; also raised by `drain`, for new folders.
    """

    def __init__(self, *folders: Path, written: bool = False) -> None:
        self._written = written
        self._mask = _ARRIVALS | _WRITTEN if written else _ARRIVALS
        self._folders: dict[int, Path] = {}
        self._roots = folders
        self._incomplete = False
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise WatchLimit(
                "folders cannot be watched: the limit of open files (`ulimit -n`) or of watching programs is reached; "
                "raise it: sysctl fs.inotify.max_user_instances=1024"
            ) from error
        try:
            self._add_all()
        except WatchLimit:
            self.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return int(self._inotify.fileno())

    def close(self) -> None:
        """Stop watching."""
        self._inotify.close()

    def add(self, folder: Path) -> None:
        """Watch one more folder; from any thread."""
        if folder not in self._roots:
            self._roots = (*self._roots, folder)
            self._add(folder, set())

    def complete(self) -> None:
        """Watch what a limit has kept from being watched, if it did; scan everything afterwards."""
        if self._incomplete:
            self._add_all()
            self._incomplete = False

    def drain(self) -> Changes:
        """What was added since the last call; never waits.

        A new folder may have contained files before it was watched; and if events were lost (the kernel's queue
        overflowed) all folders count as new.
        """
        changes = Changes()
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                changes.folders.update(self._add_all())
                continue
            folder = self._folders.get(event.wd)
            if folder is None:
                continue
            if event.mask & flags.IGNORED:  # the folder was removed; its parent reports a new one
                del self._folders[event.wd]
                continue
            if event.name.startswith("."):
                continue
            if event.mask & flags.ISDIR and event.mask & (flags.CREATE | flags.MOVED_TO):
                changes.folders.update(self._add(folder / event.name, set()))
            elif self._written or event.mask & flags.MOVED_TO:
                changes.files.add(folder / event.name)
        return changes

    def _add_all(self) -> set[Path]:
        seen: set[int] = set()
        return {path for root in self._roots for path in self._add(root, seen)}

    def _add(self, folder: Path, seen: set[int]) -> set[Path]:
        """Watch a folder and those below it; they may already hold files, so all of them count as new.

        `seen` are the watches of this walk: with circular links the same folder is found again.
        """
        try:
            descriptor = self._inotify.add_watch(folder, self._mask)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return set()  # removed again, not a folder, or not accessible (lost+found of a disk)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._incomplete = True
            raise WatchLimit(
                f"{folder} cannot be watched: the limit of watched folders is reached; "
                "raise it: sysctl fs.inotify.max_user_watches=524288"
            ) from error
        if descriptor in seen:
            return set()
        seen.add(descriptor)
        self._folders[descriptor] = folder
        added = {folder}
        try:
            below = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        except (FileNotFoundError, PermissionError):
            return added
        for path in below:
            added |= self._add(path, seen)
        return added
