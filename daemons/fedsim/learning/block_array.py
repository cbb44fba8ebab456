"""Arrays that are computed where they are read, so that nothing of a model's size has to be in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self, cast

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from fedsim.learning.examples import BLOCK, FloatArray


class BlockArray(NDArrayOperatorsMixin):
    """A float32 vector [n] that is computed where it is read.

    The aggregation and `Layout.parts` read it block by block. numpy's functions and operators work as well: they are
    given the whole vector.
    """

    ndim = 1
    dtype = np.dtype(np.float32)

    def __init__(self, size: int, read: Callable[[int, int], FloatArray]) -> None:
        """`read` returns the elements from one place to before another, as an array of their own or a view."""
        self.size = size
        self.shape = (size,)
        self._read = read

    def __len__(self) -> int:
        """The number of elements."""
        return self.size

    def __getitem__(self, here: Any) -> Any:
        """What numpy would return; a slice of consecutive elements is computed alone."""
        if not isinstance(here, slice):
            return np.asarray(self)[here]
        start, stop, step = here.indices(self.size)
        return self._read(start, max(start, stop)) if step == 1 else np.asarray(self)[here]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The whole vector, which is always new."""
        whole = np.empty(self.size, np.float32)
        for start, stop in bounds(self.size):
            whole[start:stop] = self._read(start, stop)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Compute with the whole vector."""
        whole = [np.asarray(given) if isinstance(given, BlockArray) else given for given in inputs]
        return getattr(ufunc, method)(*whole, **options)

    def copy(self) -> FloatArray:
        """The whole vector."""
        return np.asarray(self)

    def reshape(self, *shape: Any) -> Any:
        """The vector itself where it stays flat, else the whole of it in this shape."""
        flat = shape in {(-1,), (self.size,), ((self.size,),)}
        return self if flat else np.asarray(self).reshape(*shape)

    def astype(self, dtype: Any, **options: Any) -> NDArray[Any]:
        """The whole vector in this type."""
        return np.asarray(self).astype(dtype, **options)

    @classmethod
    def of(cls, size: int, read: Callable[[int, int], FloatArray]) -> FloatArray:
        """A new one, for those who take arrays."""
        return cast("FloatArray", cls(size, read))

    __copy__: Callable[[Self], FloatArray] = copy


def bounds(size: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Blocks of a vector of `size` elements, in order: each from a multiple of `multiple` to before the next block."""
    block = max(1, BLOCK // multiple) * multiple
    for start in range(0, size, block):
        yield start, min(size, start + block)
