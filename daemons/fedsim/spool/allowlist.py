"""What a daemon waits for: its receiver takes the large kinds only while they are wanted.

wanted/<uid>.json    who may send which kind, and how many parameters the task's model has

Written before anybody is asked, again whenever the task is taken up, and cleared with the task (`clear_task`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pydantic import BaseModel, ValidationError

from fedsim.errors import Refused
from fedsim.spool.durable import write_bytes
from fedsim.spool.files import FileId, Kind, NodeName
from fedsim.spool.layout import Spool

ON_DEMAND = frozenset({Kind.GLOBALPARAM, Kind.LOCALPARAM, Kind.TESTSET})


class Wanted(BaseModel):
    """What may come of a task. `senders`: None stands for everybody who may send such a file at all."""

    senders: dict[Kind, tuple[NodeName, ...] | None] = {}
    num_parameters: int | None = None


def want(
    spool: Spool, task: str, senders: Mapping[Kind, Collection[str] | None], *, num_parameters: int | None = None
) -> None:
    """Durably record what of a task may come, from whom (None: whoever may send it), and how long parameters are."""
    chosen = {kind: None if names is None else tuple(sorted(names)) for kind, names in senders.items()}
    wanted = Wanted(senders=chosen, num_parameters=num_parameters)
    write_bytes(spool.wanted(task), wanted.model_dump_json().encode())


def check_wanted(spool: Spool, file: FileId, sender: str) -> Wanted:
    """What is wanted of the file's task; raises Refused if the file is not.

    For good if other files of the task are wanted, to be tried again if the task is not known: it may be about to start
    here, or have just ended; then its sender is told to stop.
    """
    if file.kind not in ON_DEMAND:
        return Wanted()
    try:
        wanted = Wanted.model_validate_json(spool.wanted(str(file.task)).read_bytes())
    except FileNotFoundError as error:
        message = f"no {file.kind} of the task {file.task} is waited for here now; try again later"
        raise Refused("unknown_task", message, retry=True) from error
    except ValidationError as error:
        raise Refused("storage", f"{spool.wanted(str(file.task))} cannot be read: {error}", retry=True) from error
    senders = wanted.senders.get(file.kind, ())
    if senders is not None and sender not in senders:
        raise Refused("not_wanted", f"nobody has asked {sender} for a {file.kind} of the task {file.task}")
    return wanted
