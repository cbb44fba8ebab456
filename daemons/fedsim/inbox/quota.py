"""The quota of each sender: the files being received, and the share of all limits that one sender may use.

Partly received files that wait to be resumed (kept parts) are stored in `.incoming` under their sender's name. They use
disk space like open ones but only save work, so they are deleted, oldest first, when new files need the space.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from fedsim.config import Limits
from fedsim.errors import Refused
from fedsim.spool.files import FileHeader

_PART: Final = re.compile(r"(?P<sender>[A-Za-z0-9][A-Za-z0-9_.-]{0,63})\.[0-9a-f]{64}\.part")


@dataclass(eq=False)
class Claim:
    """The space reserved for a file being received; `received` grows meanwhile."""

    sender: str
    part: Path
    size: int
    received: int = 0


@dataclass(frozen=True)
class _Kept:
    sender: str
    size: int


class ReceiveQuota:
    """Every partly received file, open or kept. From any thread."""

    def __init__(self, folder: Path) -> None:
        """`folder` is that of the parts; `scan` reads it."""
        self._folder = folder
        self._lock = threading.Lock()
        self._open: set[Claim] = set()
        self._kept: dict[Path, _Kept] = {}  # oldest first

    def part(self, sender: str, header: FileHeader) -> Path:
        """The path of a file while it is received, derived from its sender, id, digest and size."""
        key = f"{header.id.model_dump_json()} {header.digest} {header.size}"
        return self._folder / f"{sender}.{blake3(key.encode()).hexdigest()}.part"

    def scan(self) -> None:
        """Read which parts the folder contains: after a start, or a sweep."""
        with self._lock:
            in_use = {claim.part for claim in self._open}
            found: list[tuple[float, Path, _Kept]] = []
            for path in self._folder.iterdir():
                match = _PART.fullmatch(path.name)
                if match and path not in in_use:
                    status = path.lstat()
                    found.append((status.st_mtime, path, _Kept(match["sender"], status.st_size)))
            self._kept = {path: kept for _, path, kept in sorted(found, key=lambda item: item[0])}

    def in_use(self) -> set[Path]:
        """The parts that are being written."""
        with self._lock:
            return {claim.part for claim in self._open}

    def claim(self, sender: str, part: Path, size: int, limits: Limits, share: float, *, urgent: bool) -> Claim:
        """Reserve space for a file, or raise Refused.

        Args:
            sender: of the file.
            part: its path while it is received.
            size: of the whole file, bytes.
            limits: of this host.
            share: of all limits that one sender may use, above 0, at most 1.
            urgent: it is small and may be what frees space: only the reserve for such files limits it.
        """
        with self._lock:
            resumed = self._kept.pop(part, None)
            there = 0 if resumed is None else resumed.size
            try:
                self._bound_files(sender, limits, share)
                if not urgent:
                    self._bound_bytes(sender, size, limits, share)
                self._bound_disk(sender, size - there, limits, urgent=urgent)
            except Refused:
                if resumed is not None:
                    self._kept[part] = resumed
                raise
            claim = Claim(sender, part, size, there)
            self._open.add(claim)
            return claim

    def close(self, claim: Claim) -> None:
        """End the reservation; a part that is still there is kept for resuming. Can be repeated."""
        with self._lock:
            if claim not in self._open:
                return
            self._open.remove(claim)
            try:
                self._kept[claim.part] = _Kept(claim.sender, claim.part.lstat().st_size)
            except FileNotFoundError:
                self._kept.pop(claim.part, None)

    # -- limits; the lock is held

    def _held(self, sender: str) -> list[Claim | _Kept]:
        everything: list[Claim | _Kept] = [*self._open, *self._kept.values()]
        return [item for item in everything if item.sender == sender]

    def _bound_files(self, sender: str, limits: Limits, share: float) -> None:
        held = len(self._held(sender))
        most = max(1, int(share * limits.max_files_in_flight))
        refused = Refused(
            "busy", f"{held} files from {sender} are being received, its share; try again later", retry=True
        )
        self._evict(held + 1 - most, lambda _: 1, refused, sender)
        if len(self._open) >= limits.max_files_in_flight:
            raise Refused("busy", f"{len(self._open)} files are being received already; try again later", retry=True)

    def _bound_bytes(self, sender: str, size: int, limits: Limits, share: float) -> None:
        promised = sum(claim.size for claim in self._open)
        if promised + size > limits.max_bytes_in_flight:
            raise Refused("busy", f"{promised} bytes are being received already; try again later", retry=True)
        held = sum(item.size for item in self._held(sender))
        taken = sum(claim.received for claim in self._open) + sum(kept.size for kept in self._kept.values())
        room = max(0, self._free() + taken - limits.min_free_bytes)
        most = int(share * min(room, limits.max_bytes_in_flight))
        code = "no_space" if room < limits.max_bytes_in_flight else "busy"
        message = (
            f"{size} bytes do not fit: {limits.min_free_bytes} must stay free, and {sender} may use {most}, its "
            f"share; it uses {held}: try again later, or free space in {self._folder.parent}"
        )
        refused = Refused(code, message, retry=True)
        self._evict(held + size - most, lambda kept: kept.size, refused, sender)

    def _bound_disk(self, sender: str, needed: int, limits: Limits, *, urgent: bool) -> None:
        free = self._free() - sum(claim.size - claim.received for claim in self._open)
        least = limits.min_free_bytes_for_json if urgent else limits.min_free_bytes
        message = f"{needed} bytes do not fit: {free} are free, {least} must stay free"
        refused = Refused("no_space", f"{message}; free space in {self._folder.parent}", retry=True)
        self._evict(least + needed - free, lambda kept: kept.size, refused, sender, others=True)

    def _evict(
        self, short: int, worth: Callable[[_Kept], int], refused: Refused, sender: str, *, others: bool = False
    ) -> None:
        """Delete kept parts, the sender's own first, until nothing is short; none of them if all would not suffice."""
        victims = []
        for path, kept in sorted(self._kept.items(), key=lambda item: item[1].sender != sender):
            if short > 0 and (others or kept.sender == sender):
                victims.append(path)
                short -= worth(kept)
        if short > 0:
            raise refused
        for path in victims:
            del self._kept[path]
            path.unlink(missing_ok=True)

    def _free(self) -> int:
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize
