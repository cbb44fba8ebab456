"""The codec of bfloat16."""

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

SIGN, LARGEST = 0x8000, 0x7F7F
"""The bit of the sign, and the bits of the largest finite number."""
_STORED = Encoding.BFLOAT16.stored


class Bfloat16(Transform):
    """Sends the upper half of each float32: half the bytes, 8 significant bits, all magnitudes of float32."""

    title = gettext_noop("bfloat16 – half the bytes, 8 significant bits, no overflow")
    accepts = Form.SPARSE
    gives = Form.ENCODED

    def layout(self, layout: Layout) -> Layout:
        """Each float32 array as bfloat16."""
        return Layout(layout.shapes, {**layout.types, **dict.fromkeys(layout.floats, ArrayType(Encoding.BFLOAT16))})

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
            {name: decode(array) if array.dtype == _STORED else array for name, array in arrays.items()}
        )


def encode(array: FloatArray) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16, block by block."""
    flat = array.reshape(-1)
    encoded = np.empty(math.prod(array.shape), np.uint16)
    for start, stop in bounds(encoded.size):
        bits = np.ascontiguousarray(flat[start:stop], np.float32).view(np.uint32)
        half = (bits >> 16) & 1
        rounded = ((bits + 0x7FFF + half) >> 16).astype(np.uint16)
        encoded[start:stop] = np.minimum(rounded & ~np.uint16(SIGN), LARGEST) | (rounded & SIGN)
    return encoded.reshape(array.shape)


def decode(array: NDArray[np.uint16]) -> FloatArray:
    """Float32, computed where it is read."""
    flat = array.reshape(-1)

    def read(start: int, stop: int) -> FloatArray:
        return (flat[start:stop].astype(np.uint32) << 16).view(np.float32)

    return BlockArray.of(flat.size, read).reshape(array.shape)
