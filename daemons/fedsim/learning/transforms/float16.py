"""The codec of half precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.array_layout import Encoding
from fedsim.learning.elementwise_codec import ElementwiseCodec
from fedsim.learning.examples import FloatArray
from fedsim.plugins import gettext_noop

LARGEST = np.float32(np.finfo(np.float16).max)


class Float16(ElementwiseCodec):
    """Sends IEEE half precision: half the bytes, 11 significant bits; beyond 65,504 that is the largest number."""

    title = gettext_noop("float16 – half the bytes, 11 significant bits")
    encoding = Encoding.FLOAT16

    def encode(self, part: FloatArray) -> NDArray[Any]:
        """The nearest float16, ties to even."""
        return np.clip(part, -LARGEST, LARGEST).astype(np.float16)

    def decode(self, part: NDArray[Any]) -> FloatArray:
        """As float32."""
        return part.astype(np.float32)
