"""Notices two hosts that announce themselves with one name, such as a machine and its copy.

The one that announces itself second is refused until the other has been silent for a while. The first is refused once
as well: a refusal is what a node shows to its administrator.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final

from fedsim.errors import BadInput, Refused
from fedsim.messages import Hello, read_message

# A host that is silent this long leaves its name to another one.
SILENT_SECONDS: Final = 30.0
_WARN_AGAIN_SECONDS: Final = 600.0


class SameName:
    """The hosts that were refused because another one has their name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refused: dict[str, str] = {}
        self._warned: dict[str, float] = {}

    def check(self, path: Path, there: Path) -> None:
        """Check the announcement at `path`; `there` is the latest one of its node that was accepted.

        Raises:
            Refused: another host has announced itself with this name just before, or was refused because of this one.
        """
        hello = read_message(Hello, path.read_bytes(), "it")
        try:
            age = time.time() - there.stat().st_mtime
            known = read_message(Hello, there.read_bytes(), "the latest hello")
        except (FileNotFoundError, BadInput):
            return
        if abs(age) < SILENT_SECONDS and _is_other(known, hello):
            with self._lock:
                self._refused[hello.node] = hello.host
            raise _two_hosts(hello.node, f"{known.host} {age:.0f} s ago, and now {hello.host}")
        with self._lock:
            other = self._refused.pop(hello.node, None)
            now = time.monotonic()
            if other is None or now < self._warned.get(hello.node, 0.0):
                return
            self._warned[hello.node] = now + _WARN_AGAIN_SECONDS
        raise _two_hosts(hello.node, f"{hello.host}, and {other}, which is refused")


def _is_other(known: Hello, hello: Hello) -> bool:
    """Whether two announcements are of different hosts; a restart of one host has a higher number and a new session."""
    if not known.instance or hello.instance != known.instance:
        return bool(known.instance)
    return hello.session != known.session and hello.start <= known.start


def _two_hosts(node: str, which: str) -> Refused:
    return Refused(
        "name_in_use",
        f"two hosts announce themselves as {node}: {which}; stop one of them, or give it a name and a certificate of "
        "its own (and an empty spool, if it is a copy)",
    )
