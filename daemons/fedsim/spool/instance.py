"""The identity of a host's spool: two hosts that have one name are distinguished by it.

A copy of a whole machine has the same id. Therefore starts are counted as well, and each has a random session: of two
hosts that count alike, or of which one counts backwards, one is a copy.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedsim.errors import DamagedFile
from fedsim.spool.sealed import read_sealed, write_sealed

INSTANCE_FILE: Final = "instance"


@dataclass(frozen=True)
class Instance:
    """A start of a daemon on a spool: the spool's random id, the number of the start, and its random session."""

    id: str
    start: int
    session: str


def next_instance(spool: Path) -> Instance:
    """Count a start of the daemon. The id is made when the spool is first used; a damaged file is replaced."""
    path = spool / INSTANCE_FILE
    try:
        found = read_sealed(path)
    except DamagedFile:
        found = None
    new = {"id": secrets.token_hex(16), "starts": 0}
    known: dict[str, Any] = found if isinstance(found, dict) else new
    instance = Instance(known["id"], known["starts"] + 1, secrets.token_hex(16))
    write_sealed(path, {"id": instance.id, "starts": instance.start})
    return instance
