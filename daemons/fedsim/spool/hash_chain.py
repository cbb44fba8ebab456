"""An append-only file of JSON lines, in which each line has a digest that covers it and all lines before it.

The field `chain` of a line is the blake3 digest of the `chain` of the line before it, followed by the line without
this field. A line that was changed, removed or inserted is found by computing them again; lines that were removed at
the end are found by comparing with a `ChainHead` that was kept elsewhere. Lines without the field, which an older
version wrote, are covered by those after them.
"""

from __future__ import annotations

import json
import os
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from blake3 import blake3

from fedsim.spool.durable import FILE_MODE, sync_folder, write_all

_FIELD: Final = b', "chain": "'
_END: Final = b'"}'
_DIGITS: Final = 64
CHECK_SECONDS: Final = 600.0


@dataclass(frozen=True)
class ChainHead:
    """The number of lines, and the chain of the last one; empty if there is none."""

    lines: int = 0
    digest: str = ""


class HashChain:
    """The file at `path`. `open` reads it; then lines can be appended, from one thread."""

    def __init__(self, path: Path) -> None:
        self.head = ChainHead()
        self._path = path
        self._chained = False  # whether a line with the field was read

    def open(self, visit: Callable[[bytes], None] = lambda _: None) -> list[str]:
        """Read and check the file, and remove what a crash has left of an unfinished line at its end.

        The whole file is read at each opening, once: a change of an old line is found in no other way, because whoever
        can change it can change what would be stored beside the file as well.

        Args:
            visit: is called with each complete line, without its end.

        Returns:
            What is wrong with the file, in sentences that are the same each time.
        """
        self.head = ChainHead()
        whole = rest = 0

        def complete(file: BinaryIO) -> Iterator[bytes]:
            nonlocal whole, rest
            for line in file:
                if not line.endswith(b"\n"):
                    rest = len(line)
                    return
                whole += len(line)
                visit(line[:-1])
                yield line[:-1]

        try:
            with self._path.open("rb") as file:
                problems = [*self.check(complete(file))]
        except FileNotFoundError:
            return []
        if rest:
            problems.append(f"an unfinished line of {rest} bytes after line {self.head.lines} was removed")
            with self._path.open("r+b") as torn:
                torn.truncate(whole)
                os.fsync(torn.fileno())
        return problems

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Durably add a line for each of `records`; after an error none of them is in the file."""
        head, added = self.head, b""
        for record in records:
            body = json.dumps(record).encode()
            head = _next(head, body)
            added += body[:-1] + _FIELD + head.digest.encode() + _END + b"\n"
        if not added:
            return
        new = not self._path.exists()
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, FILE_MODE)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                write_all(file, added)
                os.fsync(file.fileno())
            except OSError as error:
                error.filename = str(self._path)
                file.truncate(before)
                raise
        if new:
            sync_folder(self._path.parent)
        self.head = head

    def check(self, lines: Iterable[bytes]) -> Iterator[str]:
        """What is wrong with lines that follow the head, which moves to the last of them."""
        for number, line in enumerate(lines, self.head.lines + 1):
            body, field, rest = line.rpartition(_FIELD)
            if not field or len(rest) != _DIGITS + len(_END) or not rest.endswith(_END):
                if not _is_json(line):
                    yield f"line {number} is not readable"
                elif self._chained:
                    yield f"line {number} has no digest"
                self.head = _next(self.head, line)
                continue
            self._chained = True
            expected = _next(self.head, body + b"}")
            found = rest[:_DIGITS].decode(errors="replace")
            if found != expected.digest:
                yield f"line {number}, or one before it, is not what was written"
            self.head = ChainHead(number, found)


class ChainReader:
    """Reads the file at `path` for people, without changing it. Threads may share it.

    A call reads what was appended since the last one, and the lines that it returns. The whole file is read and checked
    again when something else than an addition has happened to it, and after `CHECK_SECONDS`, because an addition can
    hide a change of older lines.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._begin()

    def read(self, before: int | None, limit: int) -> tuple[list[tuple[int, bytes]], int, list[str]]:
        """At most `limit` lines before line `before` (None: the newest), newest first.

        Returns:
            The lines with their numbers, how many lines there are, and what is wrong with the file, in sentences.
        """
        with self._lock:
            try:
                with self._path.open("rb") as file:
                    self._check_new(file)
                    total = len(self._starts) - 1
                    end = total if before is None else min(before - 1, total)
                    first = max(end - limit, 0)
                    file.seek(self._starts[first])
                    lines = file.read(self._starts[end] - self._starts[first]).split(b"\n")[:-1]
            except FileNotFoundError:
                self._begin()
                return [], 0, []
            return [*enumerate(lines, first + 1)][::-1], total, [*self._problems]

    def _begin(self) -> None:
        self._chain = HashChain(self._path)
        self._problems: list[str] = []
        self._starts = array("Q", [0])  # where each line begins, and where the next one will
        self._last = b""
        self._seen = (0, 0, 0)
        self._check_at = time.monotonic() + CHECK_SECONDS

    def _check_new(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        overdue = time.monotonic() > self._check_at
        if seen == self._seen and not overdue:
            return
        if overdue or not self._only_grew(file, status):
            self._begin()
        file.seek(self._starts[-1])
        content = file.read()
        lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
        self._problems += self._chain.check(lines)
        for line in lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        self._last, self._seen = lines[-1] if lines else self._last, seen

    def _only_grew(self, file: BinaryIO, status: os.stat_result) -> bool:
        """Whether the file is longer than when it was last read, and its last line from then is where it was."""
        inode, size, _ = self._seen
        if status.st_ino != inode or status.st_size <= size or not self._last:
            return False
        file.seek(self._starts[-1] - len(self._last) - 1)
        return file.read(len(self._last) + 1) == self._last + b"\n"


def _next(head: ChainHead, body: bytes) -> ChainHead:
    return ChainHead(head.lines + 1, blake3(head.digest.encode() + body).hexdigest())


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
