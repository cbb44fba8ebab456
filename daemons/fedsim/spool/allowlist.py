"""The files that a daemon expects: its receiver accepts the kinds that are sent on demand only while they are listed.

wanted/<uid>.json    who may send which kind, and the layout of an update's file

Written before the first request, again whenever the task is resumed, and removed with the task (`clear_task`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pydantic import BaseModel, ValidationError

from fedsim.array_layout import Layout
from fedsim.errors import Refused
from fedsim.problems import problems_text
from fedsim.spool.durable import write_bytes
from fedsim.spool.files import FileId, Kind, NodeName
from fedsim.spool.kinds import KINDS
from fedsim.spool.layout import Spool


class Allowlist(BaseModel):
    """What is expected of a task. `senders`: None means every peer whose role may send the kind.

    `accept_forwarded`, `pass_on`: whether global models may come from a node that the server names, and go on to one.
    """

    senders: dict[Kind, tuple[NodeName, ...] | None] = {}
    layout: Layout | None = None
    accept_forwarded: bool = False
    pass_on: bool = False


def want(
    spool: Spool,
    task: str,
    senders: Mapping[Kind, Collection[str] | None],
    *,
    layout: Layout | None = None,
    accept_forwarded: bool = False,
    pass_on: bool = False,
) -> None:
    """Durably record which kinds of a task are expected from which senders (None: all), and the rest of `Allowlist`."""
    chosen = {kind: None if names is None else tuple(sorted(names)) for kind, names in senders.items()}
    allowlist = Allowlist(senders=chosen, layout=layout, accept_forwarded=accept_forwarded, pass_on=pass_on)
    write_bytes(spool.wanted(task), allowlist.model_dump_json().encode())


def check_wanted(spool: Spool, file: FileId, sender: str) -> Allowlist:
    """What is expected of the file's task.

    Raises:
        Refused: the file is not expected. Permanently if other files of the task are; to be retried if the task is
            unknown, because it may be about to start here, or has just ended and its sender will receive a stop.
    """
    if not KINDS[file.kind].on_demand:
        return Allowlist()
    try:
        wanted = Allowlist.model_validate_json(spool.wanted(str(file.task)).read_bytes())
    except FileNotFoundError as error:
        message = f"no {file.kind} of the task {file.task} is expected here at present; try again later"
        raise Refused("unknown_task", message, retry=True) from error
    except ValidationError as error:
        raise Refused(
            "storage", f"{spool.wanted(str(file.task))} cannot be read: {problems_text(error)}", retry=True
        ) from error
    senders = wanted.senders.get(file.kind, ())
    if senders is not None and sender not in senders:
        raise Refused("not_wanted", f"{sender} was not asked for a {file.kind} of the task {file.task}")
    return wanted
