"""A process that must not outlive the one that started it: the kernel sees to that, however the other one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)  # loaded here: a child between fork and exec must not


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Get signal `number` when the process `parent`, which started this one, ends; also when it ends by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        sys.exit(0)  # it ended before the kernel knew
