"""Logs refused connections, at a bounded rate."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

import structlog

from fedsim.errors import Refused

_QUIET_SECONDS: Final = 10.0


@dataclass
class _Quiet:
    until: float = 0.0
    unlogged: int = 0


class RefusalLog:
    """One line for each refused connection; a flood of them is counted instead. From any thread.

    Each peer with a certificate of the lab, even one that was removed, has a rate of its own: a flood of unknown
    connections does not hide what happens to it, nor does one such peer hide another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._quiet: dict[str | None, _Quiet] = {}
        self._log = structlog.get_logger()

    def report(self, address: str, refused: Refused, *, node: str | None = None) -> None:
        """Log why the connection from `address` was refused; `node` is the name in its certificate."""
        now = time.monotonic()
        with self._lock:
            quiet = self._quiet.setdefault(node, _Quiet())
            if now < quiet.until:
                quiet.unlogged += 1
                return
            quiet.until = now + _QUIET_SECONDS
            more, quiet.unlogged = quiet.unlogged, 0
        known = {} if node is None else {"node": node}
        problem = str(refused)
        self._log.warning(
            "connection_refused", address=address, **known, code=refused.code, problem=problem, not_logged_before=more
        )
