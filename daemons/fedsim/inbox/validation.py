"""Checks the content of a complete file before it is stored: what a daemon could not use is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsim.array_layout import Layout
from fedsim.errors import BadInput
from fedsim.messages import Message, read_message
from fedsim.spool.files import FileId, Role
from fedsim.spool.kinds import KINDS, ArrayBody, Body, JsonBody, ParametersBody
from fedsim.spool.npy import FLOAT32, check_finite, open_array, open_vector
from fedsim.spool.updates import check_update
from fedsim.wire import Identity


def check_contents(path: Path, file_id: FileId, sender: Identity, receiver: Role, layout: Layout | None) -> None:
    """Check that the file at `path` has the body that its kind demands.

    Args:
        path: the file, still under its temporary name.
        file_id: what it was offered as.
        sender: as proved by the connection.
        receiver: the role of this host; a server and a node receive different `initparam`.
        layout: of the parameters that the task expects, if known.

    Raises:
        BadInput: the content is wrong; the message says why.
    """
    match _body(file_id, sender.role, receiver):
        case JsonBody(model):
            _check_subject(read_message(model, path.read_bytes(), "it"), file_id, sender.name)
        case ParametersBody():
            if layout is None:
                check_finite(open_vector(path))
            else:
                check_update(path, layout)
        case ArrayBody(dtype, dimensions):
            array = open_array(path, dtype, dimensions)
            if array.dtype.str == FLOAT32:
                check_finite(array.view("<f4"))


def check_metadata(meta: dict[str, Any], file_id: FileId, sender: Role, receiver: Role) -> None:
    """Check what is offered with the file, before its body is received.

    Raises:
        BadInput: it is not what belongs to this kind; the message says why.
    """
    match _body(file_id, sender, receiver):
        case ParametersBody(model):
            read_message(model, meta, "its metadata")


def _body(file_id: FileId, sender: Role, receiver: Role) -> Body:
    route = KINDS[file_id.kind].route(sender, receiver)
    if route is None:
        raise BadInput(f"a {file_id.kind} is not sent from a {sender} to a {receiver}")
    return route.body if isinstance(route.body, Body) else route.body[str(file_id.part)]


def _check_subject(message: Message, file_id: FileId, sender: str) -> None:
    node, task = getattr(message, "node", sender), getattr(message, "task", file_id.task)
    if node != sender:
        raise BadInput(f"it names the node {node}, but was sent by {sender}")
    if task != file_id.task:
        raise BadInput(f"it is about the task {task}, but was offered for {file_id.task}")
