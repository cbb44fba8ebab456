"""What codecs have in common that replace each float32 by another number, whatever the numbers around it."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.array_layout import ArrayType, Encoding, Layout
from fedsim.learning.block_array import BlockArray, bounds
from fedsim.learning.examples import FloatArray
from fedsim.learning.transforms import Form, Sending, Transform
from fedsim.update import Update


class ElementwiseCodec(Transform):
    """The base: encodes block by block, and decodes where an array is read.

    Attributes:
        encoding: of the numbers that are sent.
    """

    accepts = Form.SPARSE
    gives = Form.ENCODED
    encoding: ClassVar[Encoding]
    uses_received = False

    def encode(self, part: FloatArray) -> NDArray[Any]:
        """The numbers that are sent for a block, float32 [b]."""
        raise NotImplementedError

    def decode(self, part: NDArray[Any]) -> FloatArray:
        """Float32 [b] for a block of the numbers that were sent."""
        raise NotImplementedError

    def layout(self, layout: Layout) -> Layout:
        """Each float32 array in this encoding."""
        return Layout(layout.shapes, {**layout.types, **dict.fromkeys(layout.floats, ArrayType(self.encoding))})

    def on_client(self, update: Update, sending: Sending) -> Update:  # noqa: ARG002
        """Encode each float32 array."""
        floats = {name: array for name, array in update.arrays.items() if array.dtype == np.float32}
        return update.with_arrays({**update.arrays, **{name: self._encoded(array) for name, array in floats.items()}})

    def on_server(self, update: Update, received: FloatArray) -> Update:  # noqa: ARG002
        """Exactly the numbers that were sent."""
        sent = {name: array for name, array in update.arrays.items() if array.dtype == self.encoding.stored}
        return update.with_arrays({**update.arrays, **{name: self._decoded(array) for name, array in sent.items()}})

    def _encoded(self, array: FloatArray) -> NDArray[Any]:
        flat = array.reshape(-1)
        encoded = np.empty(math.prod(array.shape), self.encoding.stored)
        for start, stop in bounds(encoded.size):
            encoded[start:stop] = self.encode(flat[start:stop])
        return encoded.reshape(array.shape)

    def _decoded(self, array: NDArray[Any]) -> FloatArray:
        flat = array.reshape(-1)
        return BlockArray.of(flat.size, lambda start, stop: self.decode(flat[start:stop])).reshape(array.shape)
