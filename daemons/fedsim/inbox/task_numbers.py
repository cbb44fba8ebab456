"""The number of a task, for the receiver's log: on the wire a task has only its uid.

It is read from the spool: from the plan on the server, from `initparam` on a node.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.layout import Spool

_MOST_KNOWN = 1000


class TaskNumbers:
    """Finds numbers and caches the newest: at a task's end its files are removed before the last lines are logged."""

    def __init__(self, spool: Spool, role: Role) -> None:
        self._spool = spool
        self._role = role
        self._known: dict[str, int] = {}

    def of(self, uid: str) -> int | None:
        """The number of the task with this uid, if it is known here (yet)."""
        if uid not in self._known:
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                content = json.loads(self._place(uid).read_bytes())
                self._known[uid] = int(content.get("content", content)["number"])  # the plan has its digest with it
            for oldest in list(self._known)[:-_MOST_KNOWN]:
                self._known.pop(oldest, None)
        return self._known.get(uid)

    def _place(self, uid: str) -> Path:
        if self._role is Role.SERVER:
            return self._spool.folder(Kind.GLOBALPARAM) / uid / "plan.json"
        return self._spool.path(FileId(kind=Kind.INITPARAM, task=uid), "")
