"""The number of a task, by which people know it, for the receiver's log: on the wire it has only its uid.

It stands in what the daemon of this host, or the server that a node trusts, has put into the spool: the plan on the
server, `initparam` on a node.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.layout import Spool

_MOST_KNOWN = 1000


class TaskNumbers:
    """Finds numbers, and keeps the newest: at a task's end its files go before the last lines about it are written."""

    def __init__(self, spool: Spool, role: Role) -> None:
        self._spool = spool
        self._role = role
        self._known: dict[str, int] = {}

    def of(self, uid: str) -> int | None:
        """The number of the task with this uid, if it can be told here (yet)."""
        if uid not in self._known:
            with suppress(OSError, ValueError, KeyError, TypeError):
                self._known[uid] = int(json.loads(self._place(uid).read_bytes())["number"])
            for oldest in list(self._known)[:-_MOST_KNOWN]:
                self._known.pop(oldest, None)
        return self._known.get(uid)

    def _place(self, uid: str) -> Path:
        if self._role is Role.SERVER:
            return self._spool.folder(Kind.GLOBALPARAM) / uid / "plan.json"
        return self._spool.path(FileId(kind=Kind.INITPARAM, task=uid), "")
