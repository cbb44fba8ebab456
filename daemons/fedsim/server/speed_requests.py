"""Asks nodes to measure how they train a task before its plan is fixed, and remembers who has been asked when."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from fedsim.log import get_logger
from fedsim.server.context import ServerContext
from fedsim.speed import SpeedRequest
from fedsim.spool.files import FileId, Kind

AGAIN_SECONDS: Final = 15.0
"""A question that may have been lost is asked again."""
MOST_SECONDS: Final = 150.0
"""A node that has not answered by then trains as it announces; it gives up earlier itself."""


class SpeedRequests:
    """What nodes were asked for tasks that wait."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._first: dict[tuple[str, str], float] = {}  # by task and key: two nodes may be asked for other things
        self._asked: dict[tuple[str, str], float] = {}
        self._log = get_logger()

    def ask(self, task: int, requests: Mapping[str, SpeedRequest]) -> None:
        """Ask the nodes, unless they were asked just now."""
        now = time.monotonic()
        for node, request in requests.items():
            place = request.task, node
            self._first.setdefault(place, now)
            if now - self._asked.get(place, -AGAIN_SECONDS) >= AGAIN_SECONDS:
                self._asked[place] = now
                peer = self._context.nodes.addresses[node]
                file = FileId(kind=Kind.MEASURE, task=request.task)
                self._log.info("speed_asked", task=task, node=node, model=request.model_spec.name)
                self._context.outbox.send_newest(peer, file, request.model_dump_json().encode())

    def late(self, uid: str) -> set[str]:
        """The nodes that were asked for the task too long ago."""
        now = time.monotonic()
        return {node for (task, node), since in self._first.items() if task == uid and now - since >= MOST_SECONDS}

    def drop(self, uid: str) -> None:
        """The task does not wait any more."""
        for places in (self._first, self._asked):
            for place in [place for place in places if place[0] == uid]:
                del places[place]

    def clear(self) -> None:
        """No task waits any more."""
        self._first.clear()
        self._asked.clear()
