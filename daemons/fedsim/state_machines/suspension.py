"""The event that suspends a task, on the server as on a node."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.errors import SuspendReason


@dataclass(frozen=True)
class Suspended:
    """This host cannot serve any task at present; a new machine continues from what is stored."""

    reason: SuspendReason
