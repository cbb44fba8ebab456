"""The identity of a host's spool: two hosts that have one name are distinguished by it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from fedsim.errors import DamagedFile
from fedsim.spool.sealed import read_sealed, write_sealed

INSTANCE_FILE: Final = "instance"


def instance_of(spool: Path) -> str:
    """The random id of a spool, which is made when it is first used; a damaged one is replaced."""
    path = spool / INSTANCE_FILE
    try:
        found = read_sealed(path)
    except DamagedFile:
        found = None
    if found is None:
        found = secrets.token_hex(16)
        write_sealed(path, found)
    return str(found)
