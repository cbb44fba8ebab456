"""The codec of bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.array_layout import Encoding
from fedsim.learning.elementwise_codec import ElementwiseCodec
from fedsim.learning.examples import FloatArray
from fedsim.plugins import gettext_noop

SIGN, LARGEST = 0x8000, 0x7F7F
"""The bit of the sign, and the bits of the largest finite number."""


class Bfloat16(ElementwiseCodec):
    """Sends the upper half of each float32: half the bytes, 8 significant bits, all magnitudes of float32."""

    title = gettext_noop("bfloat16 – half the bytes, 8 significant bits, no overflow")
    encoding = Encoding.BFLOAT16

    def encode(self, part: FloatArray) -> NDArray[Any]:
        """The bits of the nearest bfloat16, ties to even."""
        bits = np.ascontiguousarray(part, np.float32).view(np.uint32)
        half = (bits >> 16) & 1
        rounded = ((bits + 0x7FFF + half) >> 16).astype(np.uint16)
        encoded: NDArray[Any] = np.minimum(rounded & ~np.uint16(SIGN), LARGEST) | (rounded & SIGN)
        return encoded

    def decode(self, part: NDArray[Any]) -> FloatArray:
        """As float32."""
        return (part.astype(np.uint32) << 16).view(np.float32)
