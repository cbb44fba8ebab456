"""The parent-death signal: the kernel ends a process when its parent ends, however the parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)  # loaded here: a child between fork and exec must not


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Request signal `number` for this process when its parent, the process `parent`, ends, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        sys.exit(0)  # the parent ended before the request
