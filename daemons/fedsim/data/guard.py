"""The fixed blocks of a guarded data set: every client of every task is a union of whole blocks.

A node divides the training examples by a secret of its own into blocks of `size` examples of one label. What is
computed for two tasks then differs by whole blocks or not at all, however their settings were chosen. There is one
division for all partitions: blocks of two divisions would overlap in part, and the difference would be that part.

`guarded/<data set>.npz` in the node's spool, readable by its owner only, holds the secret and the block of each
example, by a keyed digest of the example. A changed data set extends the division: examples keep their block, new ones
wait until they fill a block, and a block that lost an example is retired with the others in it, for good.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from blake3 import blake3

from fedsim.data.split import is_held_out, some_examples
from fedsim.errors import BadInput
from fedsim.learning.examples import Examples, IntArray
from fedsim.spool.durable import write_bytes

RETIRED = -1
WAITING = -2
SECRET_BYTES = 32
KEY_BYTES = 8
_KEY, _LABEL, _BLOCK = range(3)


@dataclass(frozen=True)
class Division:
    """The examples of a guarded data set in whole blocks.

    Attributes:
        order: int64 [num_blocks x size], the indices of the examples, block after block.
        size: examples of each block.
        secret_digest: of the secret by which they were divided.
        waiting: examples that do not fill a block yet.
        retired: examples whose block lost one.
        numbers: int64 [num_blocks], by which the blocks are known whatever other blocks there are.
    """

    order: IntArray
    size: int
    secret_digest: str
    waiting: int
    retired: int
    numbers: IntArray

    @property
    def num_blocks(self) -> int:
        """How many whole blocks there are."""
        return len(self.order) // self.size

    def hold_out(self, share: float, name: str) -> tuple[Division, IntArray]:
        """The division without a share of its blocks, and the indices of the examples in those, for validation.

        Whether a block is held out depends on its number and the node's secret alone: other blocks, and a larger
        share, change nothing for it. Raises `BadInput` if no block is left on one side.
        """
        key = bytes.fromhex(self.secret_digest)
        digests = [blake3(int(number).to_bytes(8, "little"), key=key).digest(KEY_BYTES) for number in self.numbers]
        held = is_held_out(digests, share)
        if held.all() or not held.any():
            raise BadInput(
                f"data set {name}: validation_share {share} of {self.num_blocks} blocks leaves none for training or "
                "validation"
            )
        blocks = self.order.reshape(-1, self.size)
        return replace(self, order=blocks[~held].reshape(-1), numbers=self.numbers[~held]), blocks[held].reshape(-1)

    def restrict(self, train: Examples) -> Examples:
        """The examples in whole blocks, block after block."""
        return some_examples(train, self.order)


def extend_division(path: Path, name: str, train: Examples, min_difference: int) -> Division:
    """Divide a data set, or extend its division, durably.

    Args:
        path: of the file with the division; created if it is missing.
        name: of the data set, for messages.
        train: the training examples as they were read, before they are conformed to a task.
        min_difference: the least size of a block. A larger one than before merges whole blocks; a smaller one changes
            nothing.

    Raises:
        BadInput: there is no whole block, or none of the examples is known.
    """
    found = _StoredBlocks.read(path) if path.exists() else _StoredBlocks.new(min_difference)
    keys = _row_keys(train, found.secret)
    extended = found.merged(min_difference).without_lost(keys, name, path).with_new(keys, train.strata)
    if extended is not found:
        write_bytes(path, extended.content())
    return extended.division(keys, name)


def read_division(path: Path, name: str, train: Examples, min_difference: int) -> Division:
    """The division of a data set that was divided before; blocks that lost an example are left out.

    Raises:
        BadInput: it was not divided, or into smaller blocks than `min_difference`.
    """
    if not path.exists():
        raise BadInput(f"data set {name} is guarded and is not divided into blocks yet")
    found = _StoredBlocks.read(path)
    if found.size < min_difference:
        raise BadInput(f"data set {name} is divided into blocks of {found.size} examples, not yet of {min_difference}")
    keys = _row_keys(train, found.secret)
    return found.without_lost(keys, name, path).division(keys, name)


@dataclass(frozen=True)
class _StoredBlocks:
    """The secret, the size of the blocks, and the rows int64 [m, 3]: key, label and block, ordered by key."""

    secret: bytes
    size: int
    rows: IntArray

    @classmethod
    def new(cls, size: int) -> _StoredBlocks:
        return cls(secrets.token_bytes(SECRET_BYTES), size, np.zeros((0, 3), np.int64))

    @classmethod
    def read(cls, path: Path) -> _StoredBlocks:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                secret, size, rows = arrays["secret"].tobytes(), int(arrays["size"]), arrays["rows"]
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise BadInput(f"{path} is damaged: restore it from the node's backup") from error
        if len(secret) != SECRET_BYTES or size < 1 or rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 3:
            raise BadInput(f"{path} is damaged: restore it from the node's backup")
        return cls(secret, size, rows)

    def content(self) -> bytes:
        buffer = BytesIO()
        np.savez(buffer, secret=np.frombuffer(self.secret, np.uint8), size=np.int64(self.size), rows=self.rows)
        return buffer.getvalue()

    def merged(self, min_difference: int) -> _StoredBlocks:
        """Merge blocks of one label until they have `min_difference` examples; what is left over is retired."""
        factor = -(-min_difference // self.size)
        if factor == 1:
            return self
        rows = self.rows.copy()
        merged: dict[int, int] = {}
        for label in np.unique(rows[:, _LABEL]):
            blocks = np.unique(rows[(rows[:, _LABEL] == label) & (rows[:, _BLOCK] >= 0), _BLOCK]).tolist()
            whole = len(blocks) - len(blocks) % factor
            merged |= {block: blocks[at - at % factor] for at, block in enumerate(blocks[:whole])}
        rows[:, _BLOCK] = [merged.get(block, RETIRED) for block in rows[:, _BLOCK].tolist()]
        return _StoredBlocks(self.secret, self.size * factor, rows)

    def without_lost(self, keys: IntArray, name: str, path: Path) -> _StoredBlocks:
        """Retire the blocks of which an example is no longer there."""
        there = np.isin(self.rows[:, _KEY], keys)
        lost = np.unique(self.rows[~there & (self.rows[:, _BLOCK] >= 0), _BLOCK])
        if not len(lost):
            return self
        if not there.any():
            raise BadInput(
                f"none of the examples of the guarded data set {name} is one of those that it was divided from: if "
                "other data has this name now, give it another one. With scale: standard or minmax and with missing: "
                f"mean each added row changes all others: use scale: common or scale_values. ({path} has the division)"
            )
        rows = self.rows.copy()
        rows[np.isin(rows[:, _BLOCK], lost), _BLOCK] = RETIRED
        return _StoredBlocks(self.secret, self.size, rows)

    def with_new(self, keys: IntArray, labels: IntArray) -> _StoredBlocks:
        """Fill blocks with examples that are in none; their order by key is that of the secret."""
        new = np.flatnonzero(~np.isin(keys, self.rows[:, _KEY]))
        number = int(self.rows[:, _BLOCK].max(initial=-1)) + 1
        added = []
        for label in np.unique(labels[new]):
            members = np.sort(keys[new[labels[new] == label]])
            whole = len(members) // self.size
            blocks = np.repeat(np.arange(number, number + whole), self.size)
            members = members[: whole * self.size]
            added.append(np.stack([members, np.full_like(members, label), blocks], axis=1))
            number += whole
        if not sum(map(len, added)):
            return self
        rows = np.concatenate([self.rows, *added])
        return _StoredBlocks(self.secret, self.size, rows[np.argsort(rows[:, _KEY])])

    def division(self, keys: IntArray, name: str) -> Division:
        """The examples with these keys, block after block."""
        blocks = np.full(len(keys), WAITING)
        if len(self.rows):
            at = np.minimum(np.searchsorted(self.rows[:, _KEY], keys), len(self.rows) - 1)
            known = self.rows[at, _KEY] == keys
            blocks[known] = self.rows[at[known], _BLOCK]
        inside = np.flatnonzero(blocks >= 0)
        if not len(inside):
            raise BadInput(
                f"data set {name} is guarded, and no label has the {self.size} examples of a block: choose a smaller "
                "min_difference, or write `access: open` for public data"
            )
        order = inside[np.lexsort((keys[inside], blocks[inside]))]
        waiting, retired = int((blocks == WAITING).sum()), int((blocks == RETIRED).sum())
        digest, numbers = blake3(self.secret).hexdigest(), blocks[order[:: self.size]]
        return Division(order, self.size, digest, waiting, retired, numbers)


def _row_keys(train: Examples, secret: bytes) -> IntArray:
    """A keyed digest of each example and its label, int64 [n]; equal examples are told apart by their number."""
    features = np.ascontiguousarray(train.features, train.features.dtype.newbyteorder("<")).reshape(len(train), -1)
    labels = np.ascontiguousarray(train.labels, train.labels.dtype.newbyteorder("<"))
    content = b"".join(
        blake3(row.tobytes() + label.tobytes(), key=secret).digest(KEY_BYTES)
        for row, label in zip(features, labels, strict=True)
    )
    keys = np.frombuffer(content, "<i8").astype(np.int64)
    order = np.argsort(keys, kind="stable")
    repeated = np.flatnonzero(keys[order][1:] == keys[order][:-1]) + 1
    number, before = 0, -1
    for position in repeated.tolist():
        number = number + 1 if position == before + 1 else 1
        before, index = position, order[position]
        again = blake3(keys[order[position - number]].tobytes() + number.to_bytes(8, "little"), key=secret)
        keys[index] = int.from_bytes(again.digest(KEY_BYTES), "little", signed=True)
    return keys
