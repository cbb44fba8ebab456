"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from typing import Final

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 3.0


def pause_seconds(failures: int) -> float:
    """The pause after this many failures: exponential with jitter, so that many nodes do not return in step."""
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * float(2 ** min(failures, 10)))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
