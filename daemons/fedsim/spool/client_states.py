"""What clients and senders keep from round to round, as files of the task on their node.

localparam/<uid>/clients/client-000017/round-000007.DIGEST.npy    after round 7
localparam/<uid>/clients/new/round-000008.chunk-000003.client-000017.DIGEST.npy    whose update is not written yet

localparam/<uid>/clients/sender-000010/…    what the transforms keep of what was sent for a client, or for a slot

DIGEST is that of the numbers, which are checked against it before they are used. Below, a sender is like a client.

A client starts a round with the newest state of an earlier round. So a chunk that is trained again, because its worker
or its host ended before the update was written, starts with the same states. The new states are written before the
update and adopted after it; what a restart finds between the two is adopted if the update is there, else removed.
A test of a client's own model needs its newest state up to that round, which stays as long as the test is due.

client-states/task-000007.<uid>/    the clients' folders of a task that has ended, until it is resumed or continued

A resumed task has another uid and names the former one. Its clients may have kept a state of the round that is
repeated: it is not of an earlier round, so they start with the one before it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from fedsim.array_layout import Layout
from fedsim.errors import BadInput, DamagedFile
from fedsim.spool.durable import make_folder, move_into_place, remove_file, remove_tree
from fedsim.spool.npy import open_vector, write_vector
from fedsim.spool.updates import UpdateIndex
from fedsim.update import Arrays

ENDED = "client-states"
"""The folder of the states of ended tasks, in the spool."""
KEPT = 2
"""States of a client that stay in any case: the newest, and that from which the newest was trained."""
CLIENT, SENDER = "client", "sender"
"""Whose states they are."""
_NEW = re.compile(r"round-(\d{6,7})\.chunk-(\d{6,7})\.(client|sender)-(\d{6,7})\.([0-9a-f]{32})\.npy")


class StatesOnDisk:
    """The states of a chunk's clients or senders in a round; `folder` is the task's under `localparam`."""

    def __init__(self, folder: Path, layout: Layout, round_number: int, chunk: int, *, owner: str = CLIENT) -> None:
        self._folder = folder
        self._owner = owner
        self._layout = layout
        self._round = round_number
        self._chunk = chunk

    def read(self, client: int) -> Arrays:
        """A client's newest state of an earlier round, mapped from its file; zeros if there is none."""
        earlier = [path for path in _states(self._folder, self._name(client)) if _round_of(path) < self._round]
        size = self._layout.size
        vector = _open(earlier[-1], size) if earlier else np.zeros(size, np.float32)
        return self._layout.views(vector)

    def write(self, client: int, state: Arrays) -> None:
        """Durably write a client's state after this round; it counts once it is adopted."""
        for old in _new_paths(self._folder, self._round, self._chunk, self._name(client)):
            remove_file(old)
        vector = self._layout.flatten(state)
        name = f"{_new_name(self._round, self._chunk, self._name(client))}.{_digest(vector)}.npy"
        write_vector(self._folder / "clients" / "new" / name, vector)

    def oldest(self, client: int) -> Arrays:
        """A client's oldest state that is still there, of any round; zeros if there is none."""
        size = self._layout.size
        while found := _states(self._folder, self._name(client)):
            with suppress(FileNotFoundError):  # another worker has just removed it
                return self._layout.views(_open(found[0], size))
        return self._layout.views(np.zeros(size, np.float32))

    def adopt(self, clients: Iterable[int], tested: Collection[int] = ()) -> None:
        """Let the written states of these clients count; their updates are written.

        Older ones are removed, but for those that the tests of the rounds `tested` need.
        """
        for client in clients:
            _adopt(self._folder, self._round, self._chunk, self._name(client))
            _remove_used(self._folder, self._name(client), tested)

    def _name(self, number: int) -> str:
        return _owner_name(self._owner, number)


def settle_states(folder: Path, updates: UpdateIndex) -> None:
    """After a restart, before anything is cleared or trained: adopt the new states of written updates, drop others."""
    for path in sorted((folder / "clients" / "new").glob("round-*.npy")):
        match = _NEW.fullmatch(path.name)
        if match is None:
            continue
        number, chunk, owner, client = int(match[1]), int(match[2]), match[3], int(match[4])
        if any(update.client in (None, client) for update in updates.of_chunk(number, chunk)):
            _adopt(folder, number, chunk, _owner_name(owner, client))
        else:
            remove_file(path)


def keep_states(spool: Path, folder: Path, number: int, uid: str, most: int) -> None:
    """Keep the states of an ended task, before its folder is cleared; of `most` ended tasks in all."""
    if most:
        make_folder(folder / "clients")  # also of a task in which no client was trained
        kept = spool / ENDED / f"task-{number:06d}.{uid}"
        if not kept.exists():
            move_into_place(folder / "clients", kept)
    ended = sorted((spool / ENDED).glob("task-*"))
    for path in ended[: max(0, len(ended) - most)]:
        remove_tree(path)


def take_states(spool: Path, folder: Path, number: int, uid: str) -> bool:
    """Move the states of the former run `uid` to the folder of the resumed task; returns whether they are there."""
    kept = spool / ENDED / f"task-{number:06d}.{uid}"
    if kept.is_dir():
        remove_tree(folder / "clients")
        move_into_place(kept, folder / "clients")
    return (folder / "clients").is_dir()


def _owner_name(owner: str, number: int) -> str:
    return f"{owner}-{number:06d}"


def _adopt(folder: Path, number: int, chunk: int, owner: str) -> None:
    for path in _new_paths(folder, number, chunk, owner):
        digest = path.stem.rpartition(".")[2]
        move_into_place(path, folder / "clients" / owner / f"round-{number:06d}.{digest}.npy")


def _remove_used(folder: Path, owner: str, tested: Collection[int]) -> None:
    states = _states(folder, owner)
    after = [[path for path in states if _round_of(path) <= number] for number in tested]
    needed = {*states[-KEPT:], *(found[-1] for found in after if found)}
    for path in states:
        if path not in needed:
            remove_file(path)


def _states(folder: Path, owner: str) -> list[Path]:
    """The states of a client or sender, oldest first."""
    return sorted((folder / "clients" / owner).glob("round-*.npy"), key=_round_of)


def _round_of(path: Path) -> int:
    return int(path.stem.removeprefix("round-").partition(".")[0])


def _new_name(number: int, chunk: int, owner: str) -> str:
    return f"round-{number:06d}.chunk-{chunk:06d}.{owner}"


def _new_paths(folder: Path, number: int, chunk: int, owner: str) -> list[Path]:
    """The state that a client or sender got in a round, if it is not adopted yet."""
    return list((folder / "clients" / "new").glob(f"{_new_name(number, chunk, owner)}.*.npy"))


def _open(path: Path, size: int) -> NDArray[np.float32]:
    try:
        vector = open_vector(path, size)
    except BadInput as error:
        raise DamagedFile(path, str(error)) from error
    if _digest(vector) != path.stem.rpartition(".")[2]:
        raise DamagedFile(path, "its numbers do not have the digest in its name")
    return vector


def _digest(vector: NDArray[np.float32]) -> str:
    return blake3(np.ascontiguousarray(vector).view(np.uint8).data).hexdigest()[:32]
