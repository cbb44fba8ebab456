"""A look into a whole file before it counts: what the daemons would stumble over is refused here, with its reason."""

from __future__ import annotations

from pathlib import Path

from fedsim.errors import BadInput
from fedsim.messages import Assignment, Hello, Stop, Submission, read_message
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.npy import FLOAT32, INT64, check_finite, open_array, open_vector


def check_contents(path: Path, file_id: FileId, sender: str, receiver: Role, num_parameters: int | None) -> None:
    """Check that the file at `path` is what its id says.

    Args:
        path: the file, still under its temporary name.
        file_id: what it was offered as.
        sender: who sent it, as the connection proved.
        receiver: what this host is; a server and a node get different `initparam`.
        num_parameters: of the task's model, if that is known.

    Raises:
        BadInput: saying what is wrong.
    """
    match file_id.kind:
        case Kind.HELLO:
            hello = read_message(Hello, path.read_bytes(), "it")
            if hello.node != sender:
                raise BadInput(f"it announces {hello.node}, but it comes from {sender}")
        case Kind.INITPARAM:
            model: type[Submission | Assignment] = Submission if receiver is Role.SERVER else Assignment
            _same_task(file_id, read_message(model, path.read_bytes(), "it").task)
        case Kind.STOP:
            _same_task(file_id, read_message(Stop, path.read_bytes(), "it").task)
        case Kind.GLOBALPARAM | Kind.LOCALPARAM:
            check_finite(open_vector(path, num_parameters))
        case Kind.TESTSET if file_id.part == "data":
            check_finite(open_array(path, FLOAT32, range(2, 5)).view("<f4"))
        case Kind.TESTSET:
            open_array(path, INT64, range(1, 2))


def _same_task(file_id: FileId, task: str) -> None:
    if task != file_id.task:
        raise BadInput(f"it is about the task {task}, but was offered for {file_id.task}")
