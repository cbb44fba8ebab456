"""What a daemon waits for: its receiver takes the large kinds only while they are wanted.

wanted/<uid>.json    kind -> who may send it, null: whoever may send this kind at all

Written before anybody is asked, again whenever the task is taken up, and cleared with the task (`clear_task`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pydantic import TypeAdapter, ValidationError

from fedsim.errors import Refused
from fedsim.spool.durable import write_bytes
from fedsim.spool.files import FileId, Kind, NodeName
from fedsim.spool.layout import Spool

ON_DEMAND = frozenset({Kind.GLOBALPARAM, Kind.LOCALPARAM, Kind.TESTSET})
_CONTENT: TypeAdapter[dict[Kind, list[NodeName] | None]] = TypeAdapter(dict[Kind, list[NodeName] | None])


def want(spool: Spool, task: str, kinds: Mapping[Kind, Collection[str] | None]) -> None:
    """Durably record what of a task may come, and from whom; None: from everybody who may send such a file."""
    content = {kind: None if senders is None else sorted(senders) for kind, senders in kinds.items()}
    write_bytes(spool.wanted(task), _CONTENT.dump_json(content))


def check_wanted(spool: Spool, file: FileId, sender: str) -> None:
    """Raise Refused if the file is not wanted: for good if others are, to be tried again if the task is not known.

    A task that is not known may be about to start here, or have just ended; then its sender is told to stop.
    """
    if file.kind not in ON_DEMAND:
        return
    try:
        wanted = _CONTENT.validate_json(spool.wanted(str(file.task)).read_bytes())
    except FileNotFoundError as error:
        message = f"no {file.kind} of the task {file.task} is waited for here now; try again later"
        raise Refused("unknown_task", message, retry=True) from error
    except ValidationError as error:
        raise Refused("storage", f"{spool.wanted(str(file.task))} cannot be read: {error}", retry=True) from error
    senders = wanted.get(file.kind, [])
    if senders is not None and sender not in senders:
        raise Refused("not_wanted", f"nobody has asked {sender} for a {file.kind} of the task {file.task}")
