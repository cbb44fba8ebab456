"""Examples as arrays: what data formats produce and what training, testing and partitioning take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data_schema import NAMED_TARGETS, DataSchema, Targets
from fedsim.errors import BadInput

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
TargetArray = NDArray[np.int64] | NDArray[np.float32]
TARGET_DIMENSIONS: dict[Targets, int] = {"classes": 1, "tokens": 2, "mask": 3, "numbers": 2, "flags": 2}
"""Dimensions of the array of all targets. Numbers and flags are float32 [n, k], all else is int64: classes."""
STRATA = 10
"""Parts of equal size into which examples with numbers are divided where a partition goes by labels."""
BLOCK = 2**18
"""Numbers of a large array that are looked at together."""


def is_finite(array: NDArray[np.floating[Any]]) -> bool:
    """Whether an array holds no NaN and no infinity; in blocks, without a mask of its size."""
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[start : start + BLOCK]).all()) for start in range(0, flat.size, BLOCK))


@dataclass(frozen=True)
class Examples:
    """Features with their labels, also called targets.

    Attributes:
        features: uint8 or float32, [n, *shape]. Images are [n, H, W] or [n, C, H, W]. Pixels stay uint8 in memory.
        labels: int64 [n], classes counted from 0; other targets have other shapes, see `TARGET_DIMENSIONS`.
        scale: features are divided by it when a batch is read: 255 for pixels, 1 for no scaling.
        targets: the kind of the labels.
        clients: int64 [n], to which client each example belongs, by numbers from 0; None where the data does not say.
    """

    features: NDArray[Any]
    labels: Any
    scale: float = 1.0
    targets: Targets = "classes"
    clients: IntArray | None = None

    def __len__(self) -> int:
        """How many examples."""
        return len(self.labels)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.features.shape[1:])

    @property
    def strata(self) -> IntArray:
        """What partitions that go by labels see, int64 [n].

        It is an example's class; its most common class where it has several; its first flag that is set (k if none is);
        of numbers the tenth of the examples in which the first one is.
        """
        labels = self.labels
        if self.targets == "classes":
            classes: IntArray = labels
            return classes
        if self.targets == "numbers":
            ranks: IntArray = np.argsort(np.argsort(labels[:, 0], kind="stable"), kind="stable")
            return ranks * STRATA // max(len(labels), 1)
        if self.targets == "flags":
            first: IntArray = np.where((found := labels > 0).any(axis=1), found.argmax(axis=1), labels.shape[1])
            return first
        return np.array([np.bincount(row).argmax() for row in labels.reshape(len(labels), -1)], np.int64)

    def take(self, indices: IntArray | slice) -> FloatArray:
        """The features of some examples, scaled: a new float32 array [k, *shape]."""
        taken: FloatArray = self.features[indices].astype(np.float32)
        if self.scale != 1.0:
            np.divide(taken, np.float32(self.scale), out=taken)
        return taken

    def arrays(self) -> tuple[FloatArray, TargetArray]:
        """All of them as plain arrays, as they are sent: float32 [n, *shape] (scaled), and the labels."""
        return self.take(slice(None)), self.labels


@dataclass(frozen=True)
class DataSet:
    """What one node holds: examples to train on, to test on where there are any, and how many classes there are.

    With numbers and flags `num_classes` is how many of them each example has.

    `data_schema` says what the numbers mean; a format that gives none gets that of its arrays. `held_out` are examples
    that never train, for validation on the node alone.
    """

    train: Examples
    test: Examples | None
    num_classes: int
    data_schema: DataSchema | None = None
    held_out: Examples | None = None

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.train.feature_shape


def numbered(names: Any) -> IntArray:
    """The number of each name in the sorted names, int64 [n]: the names themselves stay where they are read."""
    return np.unique(np.asarray(names), return_inverse=True)[1].reshape(-1).astype(np.int64)


def check_targets(labels: NDArray[Any], targets: Targets, num_outputs: int, source: str) -> None:
    """Check an array of targets.

    Args:
        labels: of all examples.
        targets: their kind.
        num_outputs: the number of classes, or of numbers or flags of each example.
        source: what messages call it.

    Raises:
        BadInput: type, dimensions or values are not of this kind.
    """
    named = targets in NAMED_TARGETS
    wanted = np.float32 if named else np.int64
    if labels.dtype != wanted or labels.ndim != TARGET_DIMENSIONS[targets]:
        shape = {"classes": "[n]", "tokens": "[n, length]", "mask": "[n, height, width]"}.get(targets, "[n, k]")
        raise BadInput(
            f"{source}: targets that are {targets} must be {wanted.__name__} {shape}; they are {labels.dtype} "
            f"{list(labels.shape)}"
        )
    if named:
        if labels.shape[1] != num_outputs:
            raise BadInput(f"{source}: each example has {labels.shape[1]} {targets}; there must be {num_outputs}")
        rows = labels if targets == "numbers" else np.where((labels == 0) | (labels == 1), labels, np.nan)
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(wrong):
            what = "finite numbers" if targets == "numbers" else "flags, 0 or 1"
            raise BadInput(f"{source}: example {wrong[0]} has the targets {labels[wrong[0]][:10].tolist()}, not {what}")
        return
    outside = (labels < 0) | (labels >= num_outputs)
    wrong = np.flatnonzero(outside if labels.ndim == 1 else outside.reshape(len(labels), -1).any(axis=1))
    if len(wrong):
        raise BadInput(
            f"{source}: example {wrong[0]} has the label {labels[wrong[0]][outside[wrong[0]]].flat[0]}; "
            f"labels are class numbers from 0 to {num_outputs - 1}"
        )


def made_up_targets(
    rng: np.random.Generator, targets: Targets, count: int, feature_shape: tuple[int, ...], num_outputs: int
) -> TargetArray:
    """Random targets of a kind, for examples of a shape."""
    if targets == "numbers":
        return rng.standard_normal((count, num_outputs), np.float32)
    if targets == "flags":
        return rng.integers(2, size=(count, num_outputs)).astype(np.float32)
    shape = {"classes": (), "tokens": feature_shape[:1], "mask": feature_shape[-2:]}[targets]
    return rng.integers(num_outputs, size=(count, *shape))
