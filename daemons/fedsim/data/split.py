"""Splits off a test set if a data set has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet, Examples, IntArray


def split_indices(count: int, test_share: float, source: str) -> tuple[IntArray, IntArray]:
    """The indices of the training and the test examples, both ascending.

    Each index is hashed by SplitMix64 (Steele et al. 2014), and the `test_share` with the smallest hashes is the test
    set. So every host computes the same split, independent of its version of numpy.

    Raises:
        BadInput: one side would be empty.
    """
    num_test = round(count * test_share)
    if not 0 < num_test < count:
        raise BadInput(f"{source}: test_share {test_share} of {count} examples leaves none for training or testing")
    mixed = np.arange(count, dtype=np.uint64) + np.uint64(1)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    order = np.argsort(mixed, kind="stable")
    return np.sort(order[num_test:]), np.sort(order[:num_test])


def split_off_test(dataset: DataSet, test_share: float, source: str) -> DataSet:
    """Move a share of the training examples to a test set; `BadInput` if one side would be empty."""
    train, test = split_indices(len(dataset.train), test_share, source)
    return replace(dataset, train=some_examples(dataset.train, train), test=some_examples(dataset.train, test))


def hold_out(dataset: DataSet, share: float, source: str) -> DataSet:
    """Move a share of the training examples to those that are held out for validation.

    Whether an example is held out depends on its own features and label alone: it stays so whatever other examples the
    file gains or loses, a larger share holds out further ones, and equal examples are on the same side.

    Raises:
        BadInput: one side would be empty.
    """
    train = dataset.train
    held = held_out_rows(train, share)
    if held.all() or not held.any():
        raise BadInput(
            f"{source}: validation_share {share} of {len(train)} examples leaves none for training or validation"
        )
    kept, moved = np.flatnonzero(~held), np.flatnonzero(held)
    return replace(dataset, train=some_examples(train, kept), held_out=some_examples(train, moved))


def held_out_rows(train: Examples, share: float) -> NDArray[np.bool_]:
    """Which examples `hold_out` holds out, bool [n]."""
    features = np.ascontiguousarray(train.features, train.features.dtype.newbyteorder("<")).reshape(len(train), -1)
    labels = np.ascontiguousarray(train.labels, train.labels.dtype.newbyteorder("<"))
    rows = zip(features, labels, strict=True)
    return is_held_out([blake3(row.tobytes() + label.tobytes()).digest(8) for row, label in rows], share)


def is_held_out(digests: Sequence[bytes], share: float) -> NDArray[np.bool_]:
    """Whether each digest of 8 bytes is one of the `share` of all digests that begin with the smallest numbers."""
    numbers = np.frombuffer(b"".join(digests), "<u8")
    return numbers < np.uint64(min(int(share * 2**64), 2**64 - 1))


def some_examples(examples: Examples, indices: IntArray) -> Examples:
    """The examples with these indices."""
    clients = None if examples.clients is None else examples.clients[indices]
    return replace(examples, features=examples.features[indices], labels=examples.labels[indices], clients=clients)
