"""What clients keep from round to round, as files of the task on their node.

localparam/<uid>/clients/client-000017/round-000007.npy    after round 7
localparam/<uid>/clients/new/round-000008.chunk-000003.client-000017.npy    whose update is not written yet

A client starts a round with the newest state of an earlier round. So a chunk that is trained again, because its worker
or its host ended before the update was written, starts with the same states. The new states are written before the
update and adopted after it; what a restart finds between the two is adopted if the update is there, else removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.spool.durable import move_into_place, remove_file
from fedsim.spool.npy import open_vector, write_vector
from fedsim.spool.updates import UpdateIndex
from fedsim.update import Arrays, Layout

KEPT = 2
"""States of a client that stay: the newest, and that from which the newest was trained."""
_NEW = re.compile(r"round-(\d{6,7})\.chunk-(\d{6,7})\.client-(\d{6,7})\.npy")


class StatesOnDisk:
    """The states of a chunk's clients in a round; `folder` is the task's under `localparam`."""

    def __init__(self, folder: Path, layout: Layout, round_number: int, chunk: int) -> None:
        self._folder = folder
        self._layout = layout
        self._round = round_number
        self._chunk = chunk

    def read(self, client: int) -> Arrays:
        """A client's newest state of an earlier round, mapped from its file; zeros if there is none."""
        earlier = [path for path in _states(self._folder, client) if _round_of(path) < self._round]
        size = self._layout.size
        vector: NDArray[np.float32] = open_vector(earlier[-1], size) if earlier else np.zeros(size, np.float32)
        return self._layout.views(vector)

    def write(self, client: int, state: Arrays) -> None:
        """Durably write a client's state after this round; it counts once it is adopted."""
        write_vector(_new_path(self._folder, self._round, self._chunk, client), self._layout.flatten(state))

    def adopt(self, clients: Iterable[int]) -> None:
        """Let the written states of these clients count; their updates are written."""
        for client in clients:
            _adopt(self._folder, self._round, self._chunk, client)


def settle_states(folder: Path, updates: UpdateIndex) -> None:
    """After a restart, before anything is cleared or trained: adopt the new states of written updates, drop others."""
    for path in sorted((folder / "clients" / "new").glob("round-*.npy")):
        match = _NEW.fullmatch(path.name)
        if match is None:
            continue
        number, chunk, client = (int(group) for group in match.groups())
        if any(update.client in (None, client) for update in updates.of_chunk(number, chunk)):
            _adopt(folder, number, chunk, client)
        else:
            remove_file(path)


def _adopt(folder: Path, number: int, chunk: int, client: int) -> None:
    move_into_place(_new_path(folder, number, chunk, client), _path(folder, client, number))
    for path in _states(folder, client)[:-KEPT]:
        remove_file(path)


def _states(folder: Path, client: int) -> list[Path]:
    """A client's states, oldest first."""
    return sorted(_client_folder(folder, client).glob("round-*.npy"), key=_round_of)


def _round_of(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def _client_folder(folder: Path, client: int) -> Path:
    return folder / "clients" / f"client-{client:06d}"


def _path(folder: Path, client: int, number: int) -> Path:
    return _client_folder(folder, client) / f"round-{number:06d}.npy"


def _new_path(folder: Path, number: int, chunk: int, client: int) -> Path:
    return folder / "clients" / "new" / f"round-{number:06d}.chunk-{chunk:06d}.client-{client:06d}.npy"
