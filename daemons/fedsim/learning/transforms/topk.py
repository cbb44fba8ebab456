"""The codec that sends the largest numbers alone."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.array_layout import ArrayType, Encoding, Layout
from fedsim.errors import BadInput
from fedsim.learning.block_array import BlockArray, bounds
from fedsim.learning.examples import FloatArray
from fedsim.learning.strategies import Strategy
from fedsim.learning.transforms import Form, Sending, Transform
from fedsim.plugins import PluginOptions, gettext_noop
from fedsim.update import PARAMETERS, Update

_INDEX = ".index"
_RESIDUAL = ".residual"
_MOST = 2**32
"""An index has four bytes."""


class TopK(Transform):
    """Sends the numbers of largest magnitude and their places, and keeps the rest for the sender's next round.

    Error feedback as in Seide et al. 2014 and in algorithm 1 of Karimireddy et al. 2019 (EF-SGD): what is not sent is
    added to the sender's next update. The sender is a client, or a node with its sum (see `Sending.kept`).
    """

    title = gettext_noop("topk – the largest changes alone, the rest later")
    gives = Form.SPARSE
    needs_before = frozenset({"difference"})

    class Options(PluginOptions):
        """How much is sent."""

        fraction: Annotated[float, Field(gt=0, le=1)] = Field(
            0.05, title=gettext_noop("Share"), description=gettext_noop("Share of the numbers that are sent.")
        )
        error_feedback: bool = Field(
            True,
            title=gettext_noop("Error feedback"),
            description=gettext_noop("Whether what is not sent is added to the sender's next update."),
        )

    options: Options

    def problem_with(self, strategy: Strategy) -> str:
        """Other rules than the mean see mostly zeros; what clients also keep themselves must arrive some day."""
        if getattr(strategy.combine, "__func__", None) is not Strategy.combine:
            return "most changes that arrive are zero, and the rule is not their mean, so that they would be lost"
        if strategy.client_state and not self.options.error_feedback:
            return "its clients count on all that they send being added some day: set error_feedback"
        return ""

    def layout(self, layout: Layout) -> Layout:
        """Of each array as long as the model `number` elements, and their places in it."""
        shapes, types = dict(layout.shapes), dict(layout.types)
        for name, size in _long(layout).items():
            if size >= _MOST:
                raise BadInput(f"topk can send arrays of fewer than {_MOST:,} numbers, and {name} has {size:,}")
            shapes |= {name: (self.number(size),), name + _INDEX: (self.number(size),)}
            types[name + _INDEX] = ArrayType(Encoding.INDEX, below=size)
        return Layout(shapes, types)

    def kept_layout(self, layout: Layout) -> Layout:
        """The residual of each array as long as the model."""
        long = _long(layout) if self.options.error_feedback else {}
        return Layout({name + _RESIDUAL: (size,) for name, size in long.items()})

    def number(self, size: int) -> int:
        """How many of `size` numbers are sent, at least one."""
        return max(1, int(round(size * self.options.fraction, 6)))

    def on_client(self, update: Update, sending: Sending) -> Update:
        """Send the largest of update + residual; what is left is the new residual."""
        arrays, residuals = dict(update.arrays), {}
        for name, array in update.arrays.items():
            if array.shape != sending.received.shape:
                continue
            rest = _sum(array, sending.kept.get(name + _RESIDUAL))
            index = largest(rest, self.number(rest.size))
            arrays |= {name: rest[index], name + _INDEX: index}
            rest[index] = 0
            residuals[name + _RESIDUAL] = rest
        sent = update.with_arrays(arrays)
        return sent.with_client_state(residuals) if self.options.error_feedback else sent

    def on_server(self, update: Update, received: FloatArray) -> Update:
        """Zeros, but for what was sent; computed where it is read."""
        arrays = {name: array for name, array in update.arrays.items() if not name.endswith(_INDEX)}
        for name, array in arrays.items():
            if (index := update.arrays.get(name + _INDEX)) is not None:
                ArrayType(Encoding.INDEX, below=len(received)).check(index)
                arrays[name] = _scattered(index, array, len(received))
        return update.with_arrays(arrays)


def _long(layout: Layout) -> dict[str, int]:
    """The arrays as long as the model, with their length."""
    size = layout.shapes[PARAMETERS]
    return {name: math.prod(shape) for name, shape in layout.floats.items() if shape == size}


def _sum(array: FloatArray, residual: FloatArray | None) -> FloatArray:
    """A new vector, which is the only one of this length in memory besides what is given."""
    total = np.empty(len(array), np.float32)
    for start, stop in bounds(total.size):
        total[start:stop] = array[start:stop]
        if residual is not None:
            total[start:stop] += residual[start:stop]
    return total


def _scattered(index: NDArray[np.uint32], values: FloatArray, size: int) -> FloatArray:
    def read(start: int, stop: int) -> FloatArray:
        first, last = np.searchsorted(index, [start, stop])
        block = np.zeros(stop - start, np.float32)
        block[index[first:last].astype(np.int64) - start] = values[first:last]
        return block

    return BlockArray.of(size, read)


def largest(vector: FloatArray, number: int) -> NDArray[np.uint32]:
    """The places of the `number` elements of largest magnitude, ascending; of equal ones the first.

    The bits of a magnitude are ordered like the magnitude itself, so that two histograms, of their upper and of their
    lower halves, find the smallest one that is sent, without an array of the vector's length.

    Args:
        vector: finite float32 [n].
        number: 1 to n.
    """
    upper = np.zeros(2**16, np.int64)
    for start, stop in bounds(vector.size):
        upper += np.bincount(_magnitude(vector[start:stop]) >> 16, minlength=2**16)
    high, above = _bin_of(upper, number)
    lower = np.zeros(2**16, np.int64)
    for start, stop in bounds(vector.size):
        bits = _magnitude(vector[start:stop])
        lower += np.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=2**16)
    low, between = _bin_of(lower, number - above)
    least, ties = (high << 16) | low, number - above - between
    found, count = np.empty(number, np.uint32), 0
    for start, stop in bounds(vector.size):
        bits = _magnitude(vector[start:stop])
        equal = np.flatnonzero(bits == least)[:ties]
        ties -= len(equal)
        chosen = bits > least
        chosen[equal] = True
        here = np.flatnonzero(chosen)
        found[count : count + len(here)] = here + start
        count += len(here)
    return found


def _magnitude(part: FloatArray) -> NDArray[np.uint32]:
    return part.view(np.uint32) & np.uint32(0x7FFFFFFF)


def _bin_of(histogram: NDArray[np.int64], number: int) -> tuple[int, int]:
    """The bin with the `number`-th largest element, and how many elements are in bins above it."""
    reached = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(reached, number))
    return len(histogram) - 1 - place, int(reached[place] - histogram[::-1][place])
