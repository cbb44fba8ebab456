"""What a submitted task starts from: finds the checkpoint or file, and checks it against the task's model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedsim.errors import BadInput
from fedsim.initial import InitialModel, InitialSource, parse_source
from fedsim.learning.initial_arrays import ArraysInFile, describe_file, misfit
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.spool.npy import hash_file
from fedsim.store.records import Checkpoint, Task
from fedsim.web.catalogue import Catalogue
from fedsim.web.errors import Fault
from fedsim.web.i18n import Text, tr
from fedsim.web.model_shapes import model_shapes
from fedsim.web.request import WebRequest

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Found:
    """The source of a task's first model: its record, its file, and the setting with the round that was found."""

    record: InitialModel
    path: Path
    setting: str


def find_initial(
    request: WebRequest, settings: TaskSettings, catalogue: Catalogue
) -> tuple[TaskSettings, InitialModel | None, list[Text]]:
    """Find and check what a task starts from.

    Returns:
        The settings with the round that was found, what is recorded with the task, and notes for the user.

    Raises:
        Fault: 422 with the problem at the field `initial`.
    """
    source = parse_source(settings.initial)
    if source is None:
        return settings, None, []
    found = _of_file(request, source.file) if source.file is not None else _of_task(request, source)
    try:
        described = describe_file(found.path)
    except (FileNotFoundError, BadInput) as error:
        raise _wrong(tr("%(message)s", message=f"{found.path.name} cannot be read: {error}")) from error
    spec = _model_of(settings, catalogue)
    if found.record.source == "task" and spec is not None and described.model_spec == spec:
        notes = []  # the server wrote the file for this very model
    else:
        notes = _check(described, spec, settings)
    return settings.model_copy(update={"initial": found.setting}), found.record, notes


def known_files(folder: Path) -> tuple[str, ...]:
    """The files that an administrator put on the server, by name."""
    return tuple(sorted(path.name for path in folder.glob(f"*{SUFFIX}"))) if folder.is_dir() else ()


def _of_file(request: WebRequest, name: str) -> Found:
    """A file that an administrator put on the server; `name` is a plain name, with or without its suffix."""
    folder = request.config.models
    names = known_files(folder)
    file = name if name in names else name + SUFFIX
    if file not in names:  # compared with what the folder contains: never a path of its own
        available = ", ".join(names) or "–"
        raise _wrong(tr("the server has no file “%(name)s” (available: %(names)s)", name=name, names=available))
    path = folder / file
    try:
        digest = hash_file(path)
    except OSError as error:
        raise _wrong(tr("%(message)s", message=f"{file} cannot be read: {error.strerror}")) from error
    return Found(InitialModel(source="file", file=file, digest=digest), path, f"file {file}")


def _of_task(request: WebRequest, source: InitialSource) -> Found:
    """A checkpoint of a task that the user may read."""
    number = source.task or 0
    task = request.store.tasks.get(number)
    if task is None or (task.user_id != request.authenticated_user.id and not request.is_admin):
        raise _wrong(tr("there is no task %(number)s, or it belongs to another user", number=number))
    checkpoint = _checkpoint(request, task, source.round)
    record = InitialModel(source="task", task=number, round=checkpoint.round, digest=checkpoint.digest)
    setting = str(InitialSource(task=number, round=checkpoint.round))
    return Found(record, request.config.checkpoints / checkpoint.path, setting)


def _checkpoint(request: WebRequest, task: Task, round_number: int | None) -> Checkpoint:
    if task.delete_requested:
        raise _wrong(tr("task %(number)s is being deleted", number=task.number))
    saved = request.store.checkpoints.of_task(task.number)
    there = [checkpoint for checkpoint in saved if checkpoint.removed_at is None]
    if round_number is None:
        if not there:
            raise _wrong(tr("task %(number)s has no checkpoint", number=task.number))
        return there[-1]
    named = next((checkpoint for checkpoint in saved if checkpoint.round == round_number), None)
    if named is not None and named.removed_at is not None:
        raise _wrong(tr("this checkpoint was removed: %(why)s", why=named.removed_why))
    if named is None:
        rounds = ", ".join(str(checkpoint.round) for checkpoint in there) or "–"
        raise _wrong(
            tr(
                "task %(number)s has no checkpoint of round %(round)s (available: %(rounds)s)",
                number=task.number,
                round=round_number,
                rounds=rounds,
            )
        )
    return named


def _model_of(settings: TaskSettings, catalogue: Catalogue) -> ModelSpec | None:
    """The task's model for the data that nodes announce; None while that is unknown or differs between nodes."""
    found = [
        info
        for node in catalogue.nodes
        for info in (node.hello.datasets if node.hello else ())
        if info.name == settings.dataset
    ]
    if len({info.feature_shape for info in found}) != 1:
        return None
    return ModelSpec.of(settings, found[0].feature_shape, max(info.num_classes for info in found))


def _check(described: ArraysInFile, spec: ModelSpec | None, settings: TaskSettings) -> list[Text]:
    """Whether the arrays are the parameters of the task's model; returns a note where that is not known yet."""
    shapes = None if spec is None else model_shapes(spec)
    if isinstance(shapes, str):
        raise _wrong(tr("%(message)s", message=shapes))
    if shapes is None:
        return [tr("Whether “%(initial)s” fits the model is checked when the task starts.", initial=settings.initial)]
    if (problem := misfit(described.shapes, described.types, shapes)) is not None:
        raise _wrong(tr("%(message)s", message=problem))
    return []


def _wrong(problem: Text) -> Fault:
    text = tr("The task cannot be submitted: some settings are invalid.")
    return Fault(422, text, problems={"initial": problem})
