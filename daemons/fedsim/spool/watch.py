"""Waking a daemon when something arrives: inotify over the spool's folders. Only a hint; the folders are the truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from inotify_simple import INotify, flags

_ARRIVALS = flags.MOVED_TO | flags.CREATE | flags.ONLYDIR | flags.EXCL_UNLINK
_WRITTEN = flags.CLOSE_WRITE | flags.DELETE | flags.MOVED_FROM


@dataclass(frozen=True)
class Changes:
    """What a watch saw: `files` that were renamed into place, and `folders` of which every file must be looked at."""

    files: set[Path] = field(default_factory=set)
    folders: set[Path] = field(default_factory=set)


class Watch:
    """Watches folders and all that is created below them; `fileno()` becomes readable when files were renamed into one.

    Use it in a selector; then `drain()` and look at what it names. Look once at everything *after* making the watch and
    before waiting: what came earlier wakes nobody.

    With `written` it also becomes readable when a file was written in place or has gone: people's data comes that way.
    """

    def __init__(self, *folders: Path, written: bool = False) -> None:
        self._mask = _ARRIVALS | _WRITTEN if written else _ARRIVALS
        self._inotify = INotify(nonblocking=True)
        self._folders: dict[int, Path] = {}
        self._roots = folders
        for folder in folders:
            self._add(folder)

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
                for root in self._roots:
                    changes.folders.update(self._add(root))
                continue
            folder = self._folders.get(event.wd)
            if folder is None:
                continue
            if event.mask & flags.IGNORED:  # the folder was removed; its parent tells when it comes again
                del self._folders[event.wd]
            elif event.mask & flags.ISDIR:
                if event.mask & (flags.CREATE | flags.MOVED_TO) and not event.name.startswith("."):
                    changes.folders.update(self._add(folder / event.name))
            elif event.mask & flags.MOVED_TO and not event.name.startswith("."):
                changes.files.add(folder / event.name)
        return changes

    def _add(self, folder: Path) -> set[Path]:
        """Watch a folder and those below it; they may already hold files, so all of them count as new."""
        try:
            descriptor = self._inotify.add_watch(folder, self._mask)
        except (FileNotFoundError, NotADirectoryError):
            return set()  # gone again, or no folder
        self._folders[descriptor] = folder
        added = {folder}
        try:
            below = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        except FileNotFoundError:
            return added
        for path in below:
            added |= self._add(path)
        return added
