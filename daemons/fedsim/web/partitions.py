"""The partition of a task, submitted or not, where the data's owners show how many examples have each label.

It is computed from these counts and the task's settings alone, so it has no further information.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import bottle
from markupsafe import Markup

from fedsim.errors import BadInput
from fedsim.label_counts import NamedCounts
from fedsim.learning.partition_picture import MAX_CLIENTS, MAX_LABELS
from fedsim.learning.partition_view import KnownLabels, PartitionView, named_counts, view_known
from fedsim.learning.partitions import make_partitioner
from fedsim.messages import DataSetInfo, read_message
from fedsim.settings import TaskSettings
from fedsim.state_machines.shares import RecordedPlan
from fedsim.store.records import Task
from fedsim.web.catalogue import Catalogue, read_catalogue
from fedsim.web.errors import Fault
from fedsim.web.i18n import Text, tr
from fedsim.web.request import WebRequest

# Larger partitions are not drawn: these take a few tenths of a second, for which a request keeps the web busy.
MOST_EXAMPLES = 500_000
MOST_CELLS = 100_000
"""Clients times labels."""
MOST_COMPARED = 10_000_000
"""Examples times labels."""
_DIVIDES = {"partition", "partition_options", "num_clients", "min_partition_size", "seed", "partition_seed"}
OTHERS = tr("others")
_Known = tuple[tuple[str, int, tuple[tuple[str, int | None], ...]], ...]


@dataclass(frozen=True)
class ShownPartition:
    """A partition for a page or an answer; without `view`, `reason` says why there is none.

    `hidden` are the nodes of which each has a client of its own and does not show it.
    """

    view: PartitionView | None = None
    reason: Text | None = None
    hidden: tuple[str, ...] = ()

    @property
    def picture(self) -> Markup:
        """The picture as SVG. All texts in it are escaped."""
        return Markup("" if self.view is None else self.view.svg())  # noqa: S704 - escaped where it is drawn

    @property
    def num_shown(self) -> tuple[int, int] | None:
        """How many clients the picture has of how many, if these are not all."""
        return (MAX_CLIENTS, len(self.view.counts)) if self.view and len(self.view.counts) > MAX_CLIENTS else None

    @property
    def labels_shown(self) -> tuple[int, int] | None:
        """How many labels the picture has of how many, if these are not all."""
        count = self.view.counts.shape[1] if self.view else 0
        return (MAX_LABELS, count) if count > MAX_LABELS else None

    def document(self, request: WebRequest) -> dict[str, Any]:
        """For the JSON API."""
        return {
            "partition": None if self.view is None else self.view.document(),
            "hidden": list(self.hidden),
            "reason": None if self.reason is None else request.translate(self.reason),
        }


def partition_of_settings(request: WebRequest, settings: TaskSettings) -> ShownPartition:
    """How a task with these settings would divide the data that the nodes announce now."""
    catalogue = read_catalogue(request.site)
    found = _announced(settings, catalogue)
    if not found:
        return ShownPartition(reason=tr("No node has announced this data set."))
    per_node = make_partitioner(settings).per_node
    if not per_node:
        if any(info.guard is not None for _, info in found):
            text = tr("The data is guarded: each node divides its own, in a way that no one else can draw.")
            return ShownPartition(reason=text)
        largest = max(info.num_train for _, info in found)
        found = [(node, info) for node, info in found if info.num_train == largest]
    known = [(node, info.num_train, counts) for node, info in found if (counts := named_counts(info)) is not None]
    hidden = [node for node, info in found if info.label_counts is None] if per_node else []
    return _show(request, settings, known, hidden)


def partition_of_task(request: WebRequest, task: Task) -> ShownPartition:
    """How a task divides its data: as recorded with its plan, before that as it would be now."""
    content = request.store.tasks.plan(task.number)
    try:
        plan = None if content is None else read_message(RecordedPlan, content, f"the plan of task {task.number}")
    except BadInput as error:  # an older version's
        return ShownPartition(reason=tr("%(message)s", message=str(error)))
    if plan is None:
        return partition_of_settings(request, task.settings)
    shares = plan.shares
    known = [(share.node, share.num_train or 0, share.label_counts) for share in shares if share.label_counts]
    per_node = make_partitioner(task.settings).per_node
    hidden = [share.node for share in shares if not share.label_counts] if per_node else []
    if not per_node and any(share.guard is not None for share in shares):
        known = []
    return _show(request, task.settings, known, hidden)


def partition_csv(request: WebRequest, task: Task) -> bottle.HTTPResponse:
    """A row for each client: its examples, its distance from all clients together, and its examples of each label.

    Raises:
        Fault: 404 with the reason if it is not shown.
    """
    found = partition_of_task(request, task)
    if found.view is None:
        raise Fault(404, found.reason or tr("Nothing was found here."))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(found.view.csv_rows())
    response = bottle.HTTPResponse(text.getvalue(), content_type="text/csv; charset=utf-8")
    response.set_header("Content-Disposition", f'attachment; filename="task-{task.number}-partition.csv"')
    return response


def _announced(settings: TaskSettings, catalogue: Catalogue) -> list[tuple[str, DataSetInfo]]:
    """What nodes that can take part announced of the data set; of those that are offline only if all are."""
    found = [
        (node.online, node.name, info.shown)
        for node in catalogue.nodes
        if node.hello is not None and (not settings.nodes or node.name in settings.nodes)
        for info in node.hello.datasets
        if info.name == settings.dataset
    ]
    some_online = any(online for online, _, _ in found)
    return [(name, info) for online, name, info in found if online or not some_online]


def _show(
    request: WebRequest,
    settings: TaskSettings,
    known: Sequence[tuple[str, int, NamedCounts]],
    hidden: Sequence[str],
) -> ShownPartition:
    partitioner = make_partitioner(settings)
    if not known:
        text = tr("The owners of this data do not show how many examples have each label (show_labels in client.yml).")
        return ShownPartition(reason=text)
    if not (partitioner.per_node or partitioner.from_counts):
        name = settings.partition
        text = tr("What a client holds with the partition %(name)s depends on more than its labels.", name=name)
        return ShownPartition(reason=text)
    if not partitioner.per_node:
        known = known[:1]
    num_clients = len(known) if partitioner.per_node else settings.num_clients
    num_labels = max(len(counts) for _, _, counts in known) + 1
    num_train = sum(count for _, count, _ in known)
    large = not partitioner.per_node and (num_train > MOST_EXAMPLES or num_train * num_labels > MOST_COMPARED)
    if large or num_clients * num_labels > MOST_CELLS:
        return ShownPartition(reason=tr("This partition is too large to be drawn here; fedsim partition draws it."))
    key = settings.model_dump_json(include=_DIVIDES)
    frozen = tuple((node, count, tuple(counts.items())) for node, count, counts in known)
    try:
        view = _view(key, frozen, request.translate(OTHERS))
    except BadInput as error:
        return ShownPartition(reason=tr("%(message)s", message=str(error)))
    return ShownPartition(view, hidden=tuple(hidden))


@lru_cache(maxsize=16)
def _view(settings: str, known: _Known, rest: str) -> PartitionView:
    """The same for the same settings and counts, however often a page is opened."""
    chosen = TaskSettings.model_validate_json(settings)
    return view_known(chosen, [KnownLabels(node, count, dict(counts)) for node, count, counts in known], rest)
