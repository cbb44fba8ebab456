"""A node's own updates, from their training until the server has used them.

localparam/<uid>/round-000007/chunk-000003[.client-000017].npy, and .json beside it: only with that it is there.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.spool.durable import make_folder, remove_tree, write_json
from fedsim.spool.files import metadata_path
from fedsim.spool.npy import write_vector

_NAME = re.compile(r"chunk-(\d{6,7})(?:\.client-(\d{6,7}))?\.json")
_ROUND = re.compile(r"round-(\d{6,7})")


@dataclass(frozen=True)
class OwnUpdate:
    """An update on the node's disk, ready to be sent; `client` is None where it is the chunk's mean."""

    round: int
    chunk: int
    client: int | None
    path: Path
    digest: str
    meta: dict[str, Any]


class OwnUpdates:
    """The updates of one task on its node."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the task's under `localparam`."""
        self._folder = folder

    def write(
        self, round_number: int, chunk: int, client: int | None, vector: NDArray[np.float32], meta: dict[str, Any]
    ) -> None:
        """Durably write an update: float32 [P], then its metadata, with which it is there."""
        folder = self._round(round_number)
        make_folder(folder)
        name = f"chunk-{chunk:06d}" if client is None else f"chunk-{chunk:06d}.client-{client:06d}"
        path = folder / f"{name}.npy"
        digest = write_vector(path, vector)
        write_json(metadata_path(path), {"digest": digest, "meta": meta})

    def of_round(self, number: int) -> list[OwnUpdate]:
        """The round's updates, in canonical order."""
        found = []
        folder = self._round(number)
        for beside in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = _NAME.fullmatch(beside.name)
            path = beside.with_suffix(".npy")
            if match and path.exists():
                content = json.loads(beside.read_bytes())
                client = None if match[2] is None else int(match[2])
                found.append(OwnUpdate(number, int(match[1]), client, path, content["digest"], content["meta"]))
        return found

    def all(self) -> list[OwnUpdate]:
        """The updates of all rounds."""
        return [update for number in self._rounds() for update in self.of_round(number)]

    def clear(self, through: int) -> None:
        """Remove the updates of rounds up to this one."""
        for number in self._rounds():
            if number <= through:
                remove_tree(self._round(number))

    def _rounds(self) -> list[int]:
        there = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted(int(match[1]) for path in there if (match := _ROUND.fullmatch(path.name)))

    def _round(self, number: int) -> Path:
        return self._folder / f"round-{number:06d}"
