"""The codec of half precision."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedsim.array_layout import ArrayType, Encoding, Layout
from fedsim.learning.block_array import BlockArray, bounds
from fedsim.learning.examples import FloatArray
from fedsim.learning.transforms import Form, Sending, Transform
from fedsim.plugins import gettext_noop
from fedsim.update import Update

LARGEST = np.float32(np.finfo(np.float16).max)


class Float16(Transform):
    """Sends IEEE half precision: half the bytes, 11 significant bits; beyond 65,504 that is the largest number."""

    title = gettext_noop("float16 – half the bytes, 11 significant bits")
    accepts = Form.SPARSE
    gives = Form.ENCODED

    def layout(self, layout: Layout) -> Layout:
        """Each float32 array as float16."""
        return Layout(layout.shapes, {**layout.types, **dict.fromkeys(layout.floats, ArrayType(Encoding.FLOAT16))})

    def on_client(self, update: Update, sending: Sending) -> Update:  # noqa: ARG002
        """Round to the nearest, ties to even."""
        arrays = update.arrays
        return update.with_arrays(
            {name: encode(array) if array.dtype == np.float32 else array for name, array in arrays.items()}
        )

    def on_server(self, update: Update, received: FloatArray) -> Update:  # noqa: ARG002
        """Exactly the numbers that were sent."""
        arrays = update.arrays
        return update.with_arrays(
            {name: decode(array) if array.dtype == np.float16 else array for name, array in arrays.items()}
        )


def encode(array: FloatArray) -> NDArray[np.float16]:
    """The nearest float16, block by block."""
    flat = array.reshape(-1)
    encoded = np.empty(math.prod(array.shape), np.float16)
    for start, stop in bounds(encoded.size):
        encoded[start:stop] = np.clip(flat[start:stop], -LARGEST, LARGEST)
    return encoded.reshape(array.shape)


def decode(array: NDArray[np.float16]) -> FloatArray:
    """Float32, computed where it is read."""
    flat = array.reshape(-1)
    whole = BlockArray.of(flat.size, lambda start, stop: flat[start:stop].astype(np.float32))
    return whole.reshape(array.shape)
