"""Examples as arrays: what data formats produce and what training, testing and partitioning take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data_schema import DataSchema

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BLOCK = 2**18
"""Numbers of a large array that are looked at together."""


def is_finite(array: NDArray[np.floating[Any]]) -> bool:
    """Whether an array holds no NaN and no infinity; in blocks, without a mask of its size."""
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[start : start + BLOCK]).all()) for start in range(0, flat.size, BLOCK))


@dataclass(frozen=True)
class Examples:
    """Features with their labels.

    Attributes:
        features: uint8 or float32, [n, *shape]. Images are [n, H, W] or [n, C, H, W]. Pixels stay uint8 in memory.
        labels: int64 [n], classes counted from 0.
        scale: features are divided by it when a batch is read: 255 for pixels, 1 for no scaling.
    """

    features: NDArray[Any]
    labels: IntArray
    scale: float = 1.0

    def __len__(self) -> int:
        """How many examples."""
        return len(self.labels)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.features.shape[1:])

    def take(self, indices: IntArray | slice) -> FloatArray:
        """The features of some examples, scaled: a new float32 array [k, *shape]."""
        taken: FloatArray = self.features[indices].astype(np.float32)
        if self.scale != 1.0:
            np.divide(taken, np.float32(self.scale), out=taken)
        return taken

    def arrays(self) -> tuple[FloatArray, IntArray]:
        """All of them as plain arrays, as they are sent: float32 [n, *shape] (scaled) and int64 [n]."""
        return self.take(slice(None)), self.labels


@dataclass(frozen=True)
class DataSet:
    """What one node holds: examples to train on, to test on where there are any, and how many classes there are.

    `data_schema` says what the numbers mean; a format that gives none gets that of its arrays.
    """

    train: Examples
    test: Examples | None
    num_classes: int
    data_schema: DataSchema | None = None

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.train.feature_shape
