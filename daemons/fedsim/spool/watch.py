"""Waking a daemon when something arrives: inotify over the spool's folders. Only a hint; the folders are the truth."""

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
    """What a watch saw: `files` that came (or changed), and `folders` of which every file must be looked at."""

    files: set[Path] = field(default_factory=set)
    folders: set[Path] = field(default_factory=set)


class Watch:
    """Watches folders and all that is created below them; `fileno()` becomes readable when files were renamed into one.

    Use it in a selector; then `drain()` and look at what it names. Look once at everything *after* making the watch and
    before waiting: what came earlier wakes nobody.

    With `written` it also becomes readable when a file was written in place or has gone, and `drain` names the files:
    people's data comes that way.

    Raises:
        WatchLimit: the kernel allows no more; from `drain` as well, when folders came.
    """

    def __init__(self, *folders: Path, written: bool = False) -> None:
        self._written = written
        self._mask = _ARRIVALS | _WRITTEN if written else _ARRIVALS
        self._folders: dict[int, Path] = {}
        self._roots = folders
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

    def drain(self) -> Changes:
        """What has come since the last call; never waits.

        A folder that is new may have held files before it was watched; and when events were lost (the kernel's queue
        overflowed) all folders there are count as new.
        """
        changes = Changes()
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                changes.folders.update(self._add_all())
                continue
            folder = self._folders.get(event.wd)
            if folder is None:
                continue
            if event.mask & flags.IGNORED:  # the folder was removed; its parent tells when it comes again
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

        `seen` are the watches of this walk: where links lead in a circle, the same folder comes again.
        """
        try:
            descriptor = self._inotify.add_watch(folder, self._mask)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return set()  # gone again, or no folder, or none of ours (a disk's lost+found)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
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
