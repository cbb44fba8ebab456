"""The named arrays of a file: their order, shapes and types, which both sides derive from a task's settings.

A file is one flat vector. Where all arrays have the same type, it is the vector's, and they follow one another; where
they have different types, the vector is bytes, and each array begins at a multiple of 8 bytes. Nothing in a file says
where an array begins or what it is: the layout does, and whoever receives a file checks it against the layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadInput

ALIGNMENT = 8
"""Bytes: the first element of each array in a file with several types is at a multiple of this."""
CHECKED = 2**18
"""Elements that are checked at a time."""


class Encoding(StrEnum):
    """What the numbers of an array are."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INDEX = "index"

    @property
    def stored(self) -> np.dtype[Any]:
        """The type of the elements in memory and in a file; the bits of bfloat16, which numpy lacks, as integers."""
        return np.dtype(_STORED[self])


_STORED = {
    Encoding.FLOAT32: "<f4",
    Encoding.FLOAT16: "<f2",
    Encoding.BFLOAT16: "<u2",
    Encoding.INT8: "|i1",
    Encoding.INDEX: "<u4",
}
_BFLOAT16_EXPONENT = 0x7F80
_BYTES = np.dtype("|u1")


@dataclass(frozen=True)
class ArrayType:
    """The type of an array.

    Attributes:
        encoding: floats are finite, and indices strictly increasing.
        below: if it is given, each element is at least 0 and less than this.
    """

    encoding: Encoding = Encoding.FLOAT32
    below: float | None = None

    def check(self, array: NDArray[Any]) -> None:
        """Check the elements of an array of this type; `BadInput` names the first one that is wrong."""
        flat = array.reshape(-1)
        for start in range(0, flat.size, CHECKED):
            part = flat[start : start + CHECKED]
            before = flat[start - 1 : start + len(part) - 1] if start else part[:-1]
            self._check_part(part, before, start)

    def _check_part(self, part: NDArray[Any], before: NDArray[Any], start: int) -> None:
        match self.encoding:
            case Encoding.FLOAT32 | Encoding.FLOAT16:
                _require(np.isfinite(part), part, start, "NaN and Inf are not accepted")
            case Encoding.BFLOAT16:
                finite = (part & _BFLOAT16_EXPONENT) != _BFLOAT16_EXPONENT
                _require(finite, part, start, "it has the bits of NaN or Inf, which are not accepted")
            case Encoding.INDEX:
                following = part[len(part) - len(before) :]
                first = start + len(part) - len(before)
                _require(following > before, following, first, "indices must be strictly increasing")
        if self.below is not None:
            _require((part >= 0) & (part < self.below), part, start, f"it must be at least 0 and below {self.below}")


def _require(right: NDArray[np.bool_], part: NDArray[Any], start: int, problem: str) -> None:
    if not right.all():
        place = int(np.argmin(right))
        raise BadInput(f"element {start + place} is {part[place]}: {problem}")


FLOAT32_TYPE = ArrayType()


@dataclass(frozen=True)
class Layout:
    """The layout of named arrays in the flat vector of a file: in the order of `shapes`.

    Attributes:
        shapes: of the arrays.
        types: of those that are not float32.
    """

    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, ArrayType] = field(default_factory=dict)

    def type_of(self, name: str) -> ArrayType:
        """The type of an array."""
        return self.types.get(name, FLOAT32_TYPE)

    @property
    def floats(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the arrays that are float32."""
        return {name: shape for name, shape in self.shapes.items() if self.type_of(name).encoding == Encoding.FLOAT32}

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the flat vector."""
        stored = {self.type_of(name).encoding.stored for name in self.shapes} or {np.dtype(np.float32)}
        return stored.pop() if len(stored) == 1 else _BYTES

    @property
    def size(self) -> int:
        """Elements of the flat vector."""
        return max((end for _, _, end in self._places()), default=0) // self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of the flat vector."""
        return self.size * self.dtype.itemsize

    def _places(self) -> Iterator[tuple[str, int, int]]:
        """Each array's name, and its first byte and the byte after its last one in the flat vector."""
        alignment = ALIGNMENT if self.dtype == _BYTES else 1
        end = 0
        for name, shape in self.shapes.items():
            start = -(-end // alignment) * alignment
            end = start + math.prod(shape) * self.type_of(name).encoding.stored.itemsize
            yield name, start, end

    def parts(self, arrays: Mapping[str, NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """The flat vector in parts, which are not copied: the arrays, and what is between them.

        Raises:
            BadInput: the arrays are not those of the layout.
        """
        self.check_shapes(arrays)
        dtype, written = self.dtype, 0
        for name, start, end in self._places():
            if start > written:
                yield np.zeros(start - written, np.uint8)
            for flat in _contiguous(arrays[name]):
                yield flat if flat.dtype == dtype else flat.view(_BYTES)
            written = end

    def check_shapes(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Check that arrays are those of the layout; `BadInput` says which were found."""
        found = {name: array.shape for name, array in arrays.items()}
        if found != dict(self.shapes):
            raise BadInput(f"an update has the arrays {found}, but {dict(self.shapes)} are declared")
        for name, array in arrays.items():
            if array.dtype != self.type_of(name).encoding.stored:
                declared = self.type_of(name).encoding
                raise BadInput(f"the array {name} of an update is {array.dtype}, but {declared} is declared")

    def flatten(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The arrays in one vector; a single flat array is not copied.

        Raises:
            BadInput: the arrays are not those of the layout.
        """
        parts = list(self.parts(arrays))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Check every element of arrays that a peer sent; `BadInput` says what is wrong with which."""
        for name, array in arrays.items():
            try:
                self.type_of(name).check(array)
            except BadInput as error:
                raise BadInput(f"{name}: {error}" if len(arrays) > 1 else str(error)) from error

    def views(self, vector: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The arrays in a flat vector of `size` elements, without a copy."""
        flat = vector.view(_BYTES)
        return {
            name: flat[start:end].view(self.type_of(name).encoding.stored).reshape(self.shapes[name])
            for name, start, end in self._places()
        }


def _contiguous(array: Any) -> Iterator[NDArray[Any]]:
    """An array as flat vectors; one that is computed where it is read, block by block."""
    if isinstance(array, np.ndarray):
        yield np.ascontiguousarray(array).reshape(-1)
        return
    for start in range(0, len(array), CHECKED):
        yield array[start : start + CHECKED]
