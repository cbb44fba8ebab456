"""The codec of one byte a number."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.array_layout import ArrayType, Encoding, Layout
from fedsim.learning.block_array import BlockArray, bounds
from fedsim.learning.examples import FloatArray
from fedsim.learning.randomness import generator
from fedsim.learning.transforms import Form, Sending, Transform
from fedsim.plugins import PluginOptions, gettext_noop
from fedsim.update import Update

LEVELS = 127
SCALE_BELOW = 2.0**121
"""What a scale must be below: 127 times as much is still a finite float32."""
_SCALE = ".int8_scale"


class Int8(Transform):
    """Sends one byte a number, with a scale for each block and stochastic rounding, whose mean is the number itself.

    Rounding as in QSGD (Alistarh et al. 2017), with 127 levels and the largest magnitude of a block as its scale. What
    is drawn depends on the task's seed, the round and the sender alone.
    """

    title = gettext_noop("int8 – a quarter of the bytes, rounded at random")
    accepts = Form.SPARSE
    gives = Form.ENCODED
    uses_received = False

    class Options(PluginOptions):
        """The blocks."""

        block_size: Annotated[int, Field(ge=8, le=1_000_000)] = Field(
            1024,
            title=gettext_noop("Block"),
            description=gettext_noop("Numbers that share a scale of 4 bytes: fewer are more exact."),
        )

    options: Options

    def layout(self, layout: Layout) -> Layout:
        """Each float32 array as int8, and its scales."""
        shapes, types = dict(layout.shapes), dict(layout.types)
        for name, shape in layout.floats.items():
            types |= {name: ArrayType(Encoding.INT8), name + _SCALE: ArrayType(below=SCALE_BELOW)}
            shapes[name + _SCALE] = (self._blocks(math.prod(shape)),)
        return Layout(shapes, types)

    def on_client(self, update: Update, sending: Sending) -> Update:
        """Round each number to one of the two multiples of its scale next to it."""
        arrays = dict(update.arrays)
        sender = (0, update.chunk) if update.client is None else (1, update.client)
        for number, (name, array) in enumerate(update.arrays.items()):
            if array.dtype == np.float32:
                rng = generator(sending.seed, "int8", update.base_round, *sender, number)
                arrays[name], arrays[name + _SCALE] = self._encode(array, rng)
        return update.with_arrays(arrays)

    def on_server(self, update: Update, received: FloatArray) -> Update:  # noqa: ARG002
        """The multiples of the scales, computed where they are read."""
        arrays = {name: array for name, array in update.arrays.items() if not name.endswith(_SCALE)}
        for name, array in arrays.items():
            if (scales := update.arrays.get(name + _SCALE)) is not None:
                arrays[name] = self._decode(array, scales)
        return update.with_arrays(arrays)

    def _blocks(self, size: int) -> int:
        return -(-size // self.options.block_size)

    def _encode(self, array: FloatArray, rng: np.random.Generator) -> tuple[NDArray[np.int8], FloatArray]:
        block, flat, size = self.options.block_size, array.reshape(-1), math.prod(array.shape)
        encoded, scales = np.empty(size, np.int8), np.empty(self._blocks(size), np.float32)
        for start, stop in bounds(size, block):
            part = flat[start:stop]
            first = start // block
            here = np.maximum.reduceat(np.abs(part), range(0, len(part), block)) / np.float32(LEVELS)
            np.minimum(here, np.nextafter(np.float32(SCALE_BELOW), np.float32(0)), out=here)
            scales[first : first + len(here)] = here
            levels = part / np.repeat(np.where(here > 0, here, np.float32(1)), block)[: len(part)]
            levels += rng.random(len(part), np.float32)
            encoded[start:stop] = np.clip(np.floor(levels, out=levels), -LEVELS, LEVELS)
        return encoded.reshape(array.shape), scales

    def _decode(self, array: NDArray[np.int8], scales: FloatArray) -> FloatArray:
        block, flat = self.options.block_size, array.reshape(-1)

        def read(start: int, stop: int) -> FloatArray:
            first = start // block
            shared = np.repeat(scales[first : self._blocks(stop)], block)[start - first * block :]
            return flat[start:stop] * shared[: stop - start]

        return BlockArray.of(flat.size, read).reshape(array.shape)
