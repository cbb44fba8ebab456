"""Splits off a test set if a data set has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

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
    return replace(dataset, train=_some(dataset.train, train), test=_some(dataset.train, test))


def _some(examples: Examples, indices: IntArray) -> Examples:
    return replace(examples, features=examples.features[indices], labels=examples.labels[indices])
