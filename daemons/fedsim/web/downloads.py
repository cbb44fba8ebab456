"""Downloads: checkpoints as the server saved them, and rounds as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import bottle

from fedsim.learning.metrics import ROUND_COLUMNS, flat_class_values, flat_contributions, flat_node_values
from fedsim.learning.objectives import metrics_of
from fedsim.store import Store
from fedsim.store.records import RoundRecord, Task
from fedsim.web.errors import Fault, not_found, status_text
from fedsim.web.i18n import tr
from fedsim.web.request import WebRequest
from fedsim.web.views import plain, task_json

BLOCK_ROUNDS = 1000


def checkpoint_file(request: WebRequest, task: Task, round_number: int, *, sidecar: bool) -> bottle.HTTPResponse:
    """The checkpoint of a round, or its metadata. The digest is the ETag, and range requests are supported.

    Raises:
        Fault: 404 if there is none, 410 with the reason if it was removed.
    """
    if not 0 <= round_number <= task.settings.num_rounds:
        raise not_found()
    found = request.store.checkpoints.of_task(task.number, after=round_number - 1, before=round_number + 1)
    if not found:
        raise not_found()
    checkpoint = found[0]
    if checkpoint.removed_at is not None:
        raise Fault(410, tr("This checkpoint was removed: %(why)s", why=checkpoint.removed_why))
    root = request.config.checkpoints.resolve()
    path = (root / checkpoint.path).resolve()
    if sidecar:
        path = path.with_suffix(".json")
    if not path.is_relative_to(root) or not path.is_file():
        raise not_found()
    wanted = request.header("Range")
    stretch = next(iter(bottle.parse_range_header(wanted, path.stat().st_size)), None) if wanted else None
    if wanted and stretch is None:
        raise Fault(416, status_text(416))  # Bottle would answer the same, but leave the file open
    response = bottle.static_file(
        path.relative_to(root).as_posix(),
        root=str(root),
        mimetype="application/json" if sidecar else "application/octet-stream",
        download=f"task-{task.number}-{Path(path).name}",
        etag=f'"{checkpoint.digest}{"-json" if sidecar else ""}"',
    )
    if response.status_code >= 400:
        raise Fault(response.status_code, status_text(response.status_code))
    if stretch is not None and response.status_code == 206:
        response.body.close()
        response.body = _Stretch(path.open("rb"), *stretch)
    response.set_header("Cache-Control", "no-store")  # parameters can reveal training data
    return response


class _Stretch:
    """Part of an open file. It is a file object itself, so that gunicorn sends it from disk without copying."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file = file
        self._end = end
        self.fileno, self.close = file.fileno, file.close
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        """Read the next bytes, none beyond the end of the part."""
        left = max(self._end - self._file.tell(), 0)
        return self._file.read(left if size < 0 else min(size, left))


def rounds_csv(store: Store, task: Task) -> bottle.HTTPResponse:
    """The rounds as CSV: a row for each round, with columns for metrics, seconds of each phase and metrics by class."""
    names: set[str] = set()
    phases: set[str] = set()
    places: set[tuple[str | int, ...]] = set()
    for block in _blocks(store, task):
        for record in block:
            names.update(record.metrics, record.train_metrics)
            phases.update(record.seconds)
            places.update(_by_place(record))
    metrics = [metric.name for metric in metrics_of(task.settings).in_order(names)]
    name = f"task-{task.number}-rounds.csv"
    headers = {"Content-Type": "text/csv; charset=utf-8", "Content-Disposition": f'attachment; filename="{name}"'}
    return bottle.HTTPResponse(_csv(store, task, metrics, sorted(phases), sorted(places)), headers=headers)


def _csv(
    store: Store, task: Task, metrics: list[str], phases: list[str], places: list[tuple[str | int, ...]]
) -> Iterator[bytes]:
    heading = ["round", *metrics, *ROUND_COLUMNS, *(f"seconds_{name}" for name in phases)]
    yield _csv_lines([[*heading, *("_".join(map(str, place)) for place in places)]])
    for block in _blocks(store, task):
        lines = []
        for record in block:
            measured = record.metrics | record.train_metrics
            values = [getattr(record, name) for name in ROUND_COLUMNS]
            values[ROUND_COLUMNS.index("missing")] = " ".join(map(str, record.missing))
            seconds = [record.seconds.get(phase) for phase in phases]
            of_classes = _by_place(record)
            lines.append([record.round, *map(measured.get, metrics), *values, *seconds, *map(of_classes.get, places)])
        yield _csv_lines(lines)


def _by_place(record: RoundRecord) -> dict[tuple[str | int, ...], float | None]:
    """The values of a round by class or by node."""
    of_nodes = flat_node_values(record.node_metrics) | flat_contributions(record.contributions)
    return flat_class_values(record.class_metrics) | of_nodes


def _csv_lines(lines: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def rounds_json(store: Store, task: Task) -> bottle.HTTPResponse:
    """The task with all its rounds as one JSON document."""
    head = json.dumps({"task": task_json(store, task)}, allow_nan=False)
    name = f"task-{task.number}-rounds.json"
    headers = {"Content-Type": "application/json", "Content-Disposition": f'attachment; filename="{name}"'}
    return bottle.HTTPResponse(_json(store, task, head), headers=headers)


def _json(store: Store, task: Task, head: str) -> Iterator[bytes]:
    yield f'{head[:-1]}, "rounds": ['.encode()
    between = ""
    for block in _blocks(store, task):
        yield (between + json.dumps(plain(block), allow_nan=False)[1:-1]).encode()
        between = ", "
    yield b"]}"


def _blocks(store: Store, task: Task) -> Iterator[list[RoundRecord]]:
    """All rounds in blocks, so that memory does not grow with their number."""
    after: int | None = None
    while block := store.rounds.of_task(task.number, after=after, limit=BLOCK_ROUNDS):
        yield block
        after = block[-1].round
