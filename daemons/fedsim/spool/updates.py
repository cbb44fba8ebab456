"""Updates as files, on the node from their training until the server has used them.

localparam/<uid>/round-000007/chunk-000003[.client-000017].npy, and .json next to it, which marks it as complete.
A worker writes them and reports what it wrote; the daemon reads the folder once, when it resumes the task.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray
from pydantic import ValidationError

from fedsim.array_layout import ALIGNMENT, Layout
from fedsim.errors import BadInput
from fedsim.spool.durable import make_folder, remove_file, remove_tree, write_bytes
from fedsim.spool.files import FileId, Kind, metadata_path
from fedsim.spool.npy import open_array, write_parts
from fedsim.update import Update

_ROUND = re.compile(r"round-(\d{6,7})")


def file_id(update: Update, task: str) -> FileId:
    """The id under which an update is sent."""
    return FileId(kind=Kind.LOCALPARAM, task=task, round=update.base_round, chunk=update.chunk, client=update.client)


def update_path(folder: Path, update: Update) -> Path:
    """The path of an update's file; `folder` is the task's under `localparam`."""
    client = "" if update.client is None else f".client-{update.client:06d}"
    return folder / f"round-{update.base_round:06d}" / f"chunk-{update.chunk:06d}{client}.npy"


def write_update(folder: Path, update: Update, layout: Layout) -> Update:
    """Durably write an update's arrays, then the update itself; returns it with digest and size.

    Raises:
        BadInput: the arrays are not those of the layout.
    """
    path = update_path(folder, update)
    make_folder(path.parent)
    digest = write_parts(path, layout.dtype, (layout.size,), layout.parts(update.arrays))
    update = update.stored(digest, path.stat().st_size)
    write_bytes(metadata_path(path), update.model_dump_json().encode())
    return update


def open_arrays(path: Path, layout: Layout) -> dict[str, NDArray[Any]]:
    """Map the arrays of an update's file read-only; their elements are not checked.

    Raises:
        BadInput: it is not a flat vector of the layout's type and length.
    """
    vector = open_array(path, layout.dtype.str, range(1, 2))
    if len(vector) != layout.size:
        raise BadInput(f"it has {len(vector)} elements of {layout.dtype}; an update of this task has {layout.size}")
    if layout.dtype.itemsize == 1 and vector.offset % ALIGNMENT:  # else `open_array` has checked it
        raise BadInput("its numbers are not aligned")
    return layout.views(vector)


def check_update(path: Path, layout: Layout) -> None:
    """Check the file of an update from a peer: type, length, and every element; else `BadInput`."""
    layout.check(open_arrays(path, layout))


class UpdateIndex:
    """The written updates of one task on its node, by round and chunk."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the task's under `localparam`; `open` reads it."""
        self._folder = folder
        self._rounds: dict[int, dict[int, list[Update]]] = defaultdict(lambda: defaultdict(list))

    def open(self) -> Self:
        """Read what is in the folder."""
        self.add(update for number in self._folders() for update in _read(self._folder / f"round-{number:06d}"))
        return self

    def path(self, update: Update) -> Path:
        """The path of an update's file."""
        return update_path(self._folder, update)

    def add(self, updates: Iterable[Update]) -> None:
        """Note updates that were written."""
        for update in updates:
            chunk = self._rounds[update.base_round][update.chunk]
            chunk[:] = [*(other for other in chunk if other.client != update.client), update]

    def of_chunk(self, number: int, chunk: int) -> list[Update]:
        """The updates of a chunk in a round."""
        return self._rounds.get(number, {}).get(chunk, [])

    def of_round(self, number: int) -> list[Update]:
        """The updates of a round."""
        return [update for updates in self._rounds.get(number, {}).values() for update in updates]

    def all(self) -> list[Update]:
        """The updates of all rounds."""
        return [update for number in self._rounds for update in self.of_round(number)]

    def clear(self, through: int) -> None:
        """Remove the updates of rounds up to this one, also incomplete ones."""
        for number in [number for number in self._rounds if number <= through]:
            del self._rounds[number]
        for number in self._folders():
            if number <= through:
                remove_tree(self._folder / f"round-{number:06d}")

    def clear_chunks(self, chunks: Iterable[tuple[int, int]]) -> None:
        """Remove the updates of these (round, chunk)."""
        for number, chunk in chunks:
            for update in self._rounds.get(number, {}).pop(chunk, []):
                path = self.path(update)
                remove_file(metadata_path(path))  # first: without it the update does not count
                remove_file(path)

    def _folders(self) -> list[int]:
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted(int(match[1]) for path in found if (match := _ROUND.fullmatch(path.name)))


def _read(folder: Path) -> Iterator[Update]:
    """The updates of a round's folder; one that cannot be read does not count, and is trained again."""
    for path in sorted(folder.glob("chunk-*.json")):
        try:
            update = Update.model_validate_json(path.read_bytes())
        except ValidationError:
            continue
        if update_path(folder.parent, update).exists():
            yield update
