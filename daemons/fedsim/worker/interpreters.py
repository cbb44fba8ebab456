"""The Python that runs a task's workers: that of the version under which it began, so that an upgrade keeps its bytes.

Each version of fedsim has a virtual environment of its own, in folders side by side that are named by it
(/opt/fedsim/0.1.0, /opt/fedsim/0.2.0).
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from fedsim import __version__

_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!-]{0,62}")


@dataclass(frozen=True)
class Interpreter:
    """A Python, and the version of fedsim that it finds."""

    python: Path
    version: str


def interpreter_of(version: str, *, prefix: Path | None = None) -> Interpreter:
    """The interpreter of this version of fedsim; where its environment is gone, this process's own.

    Args:
        version: wanted.
        prefix: the environment next to which that of `version` is installed; None: that of this process.
    """
    if version != __version__ and _VERSION.fullmatch(version):
        python = (prefix or Path(sys.prefix)).resolve().parent / version / "bin" / "python"
        if os.access(python, os.X_OK):
            return Interpreter(python, version)
    return Interpreter(Path(sys.executable), __version__)
