"""What people take home: checkpoints as the server saved them, and the rounds as CSV or JSON."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import BinaryIO

import bottle

from fedsim.store.interface import RoundRecord, Store, Task
from fedsim.web.faults import Fault, not_found, status_text
from fedsim.web.i18n import tr
from fedsim.web.responses import json_response
from fedsim.web.views import plain, task_json
from fedsim.web.visit import Visit


def checkpoint_file(visit: Visit, task: Task, round_number: int, *, sidecar: bool) -> bottle.HTTPResponse:
    """The checkpoint of a round, or the JSON beside it; the digest is the ETag, ranges are answered.

    Raises:
        Fault: 404 if there is none, 410 with the reason if it was removed.
    """
    checkpoint = next((c for c in visit.store.checkpoints(task.number) if c.round == round_number), None)
    if checkpoint is None:
        raise not_found()
    if checkpoint.removed_at is not None:
        raise Fault(410, tr("This checkpoint was removed: %(why)s", why=checkpoint.removed_why))
    root = visit.config.checkpoints.resolve()
    path = (root / checkpoint.path).resolve()
    if sidecar:
        path = path.with_suffix(".json")
    if not path.is_relative_to(root) or not path.is_file():
        raise not_found()
    wanted = visit.header("Range")
    stretch = next(iter(bottle.parse_range_header(wanted, path.stat().st_size)), None) if wanted else None
    if wanted and stretch is None:
        raise Fault(416, status_text(416))  # Bottle would say so as well, but leave the file open
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
    response.set_header("Cache-Control", "private, no-cache")
    return response


class _Stretch:
    """Part of an open file that still is one, so that it is sent from the disk and not copied piece by piece."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file = file
        self._end = end
        self.fileno, self.close = file.fileno, file.close
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        """The next bytes, none beyond the end."""
        left = max(self._end - self._file.tell(), 0)
        return self._file.read(left if size < 0 else min(size, left))


def rounds_csv(task: Task, rounds: list[RoundRecord]) -> bottle.HTTPResponse:
    """One line for each round; a column for each phase's seconds and each class's recall."""
    phases = sorted({phase for record in rounds for phase in record.seconds})
    classes = max((len(record.recall or ()) for record in rounds), default=0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["round", "accuracy", "loss", "auc", "train_loss", "num_examples", "cohort_size", "missing"]
    columns += ["bytes_sent", "bytes_received", "finished_at", "digest"]
    writer.writerow([*columns, *(f"seconds_{name}" for name in phases), *(f"recall_{i}" for i in range(classes))])
    for record in rounds:
        values = [getattr(record, name) for name in columns]
        values[columns.index("missing")] = " ".join(map(str, record.missing))
        recall = record.recall or ()
        padded = [*recall, *[None] * (classes - len(recall))]
        writer.writerow([*values, *(record.seconds.get(phase) for phase in phases), *padded])
    name = f"task-{task.number}-rounds.csv"
    headers = {"Content-Type": "text/csv; charset=utf-8", "Content-Disposition": f'attachment; filename="{name}"'}
    return bottle.HTTPResponse(text.getvalue(), headers=headers)


def rounds_json(store: Store, task: Task) -> bottle.HTTPResponse:
    """The task with everything known of its rounds, as one JSON document."""
    response = json_response({"task": task_json(store, task), "rounds": plain(store.rounds(task.number))})
    response.set_header("Content-Disposition", f'attachment; filename="task-{task.number}-rounds.json"')
    return response
