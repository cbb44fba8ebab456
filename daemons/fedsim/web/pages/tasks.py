"""Pages of tasks: the lists, the live page of a task, and its actions and downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import bottle

from fedsim.contribution_table import contributions_of
from fedsim.learning.objectives import metrics_of
from fedsim.store.records import Checkpoint, RoundRecord, Task
from fedsim.web import forms, submissions
from fedsim.web.charts import charts_of, rounds_to_draw
from fedsim.web.downloads import checkpoint_file, rounds_csv, rounds_json
from fedsim.web.partitions import partition_csv, partition_of_task
from fedsim.web.rendering import Renderer
from fedsim.web.request import WebRequest
from fedsim.web.responses import see_other
from fedsim.web.routes import Access, Route
from fedsim.web.statistics_view import shown_statistics
from fedsim.web.views import PHASES, node_tests, planned_settings, screened_nodes, task_view, task_views

PAGE_SIZE = 20
SHOWN_ROUNDS = 50
SHOWN_CHECKPOINTS = 20
SHOWN_EVENTS = 50
BIGGEST = 2**63 - 1
MOST_ROUNDS = 2**31 - 1


class TaskPages:
    """The lists of tasks, and the page of a task."""

    def __init__(self, renderer: Renderer) -> None:
        self._page = renderer.page

    def routes(self) -> list[Route]:
        """The routes."""
        task = "/tasks/<number:int>"
        return [
            Route("GET", "/tasks", self.mine),
            Route("GET", "/admin/tasks", self.all_users_tasks, Access.ADMIN),
            Route("GET", task, self.task),
            Route("POST", task + "/stop", self.stop),
            Route("POST", task + "/resume", self.resume),
            Route("POST", task + "/continue", self.continue_task),
            Route("POST", task + "/delete", self.delete),
            Route("GET", task + "/rounds.csv", self.rounds_csv),
            Route("GET", task + "/rounds.json", self.rounds_json),
            Route("GET", task + "/partition.csv", self.partition_csv),
            Route("GET", task + "/checkpoints/<round_number:int>", self.checkpoint),
        ]

    # -- lists
    def mine(self, request: WebRequest) -> str | bottle.HTTPResponse:
        """The user's own tasks."""
        return self._list(request, request.authenticated_user.id, "/tasks")

    def all_users_tasks(self, request: WebRequest) -> str | bottle.HTTPResponse:
        """All tasks, for administrators."""
        return self._list(request, None, "/admin/tasks")

    def _list(self, request: WebRequest, owner: int | None, path: str) -> str | bottle.HTTPResponse:
        before = request.query_number("before", None, least=1, most=BIGGEST)
        found = request.store.tasks.newest(owner, limit=PAGE_SIZE + 1, before=before)
        views = task_views(request.store, found[:PAGE_SIZE])
        older = found[PAGE_SIZE - 1].number if len(found) > PAGE_SIZE else None
        values = {
            "tasks": views,
            "older": older,
            "before": before,
            "path": path,
            "all_users": owner is None,
            "live": any(view.live for view in views),
            "headlines": list({one.headline.name: one.headline for one in views if one.task.settings.trains}.values()),
        }
        return self._live_part(request, "tasks.html", "_tasks.html", values)

    def _live_part(
        self, request: WebRequest, page: str, part: str, values: dict[str, Any]
    ) -> str | bottle.HTTPResponse:
        """The whole page; for htmx only its live part, or an empty response if that has not changed."""
        body = self._page(request, part, **values, seen="")
        digest = blake2b(body.encode(), digest_size=8).hexdigest()
        if not request.header("HX-Request"):
            return self._page(request, page, **values, seen=digest)
        if request.query.get("seen") == digest:
            return bottle.HTTPResponse(status=204)
        return self._page(request, part, **values, seen=digest)

    # -- one task
    def task(self, request: WebRequest, number: int) -> str | bottle.HTTPResponse:
        """The page of a task."""
        return self._task(request, submissions.task_of(request, number))

    def _task(self, request: WebRequest, task: Task) -> str | bottle.HTTPResponse:
        store, number = request.store, task.number
        rounds = _page(request, "before", SHOWN_ROUNDS, partial(store.rounds.of_task, number))
        newest = _newest(rounds.shown if rounds.before is None else store.rounds.of_task(number, limit=1, newest=True))
        curves = store.rounds.metrics(number, rounds_to_draw(newest, task.settings.evaluate_every))
        tested = max((point.round for point in curves if point.metrics), default=None)
        metrics = metrics_of(task.settings)
        planned = planned_settings(task)
        with_partition = task.settings.trains and not request.header("HX-Request")
        values = {
            "view": task_view(store, task, newest),
            "task": task,
            "settings": task.settings,
            "planned": planned,
            "shown_settings": forms.labelled_settings(planned),
            "charts": charts_of(curves, task.settings.num_rounds, metrics),
            "metrics": metrics,
            "columns": metrics.in_order(name for r in rounds.shown for name in (*r.metrics, *r.train_metrics)),
            "rounds": rounds,
            "num_rounds_recorded": store.rounds.count(number),
            "phases": _phases(rounds.shown),
            "screened": screened_nodes(rounds.shown),
            "node_tests": node_tests(rounds.shown),
            "contributions": contributions_of((one.round, one.contributions) for one in rounds.shown),
            "tested": None
            if tested is None
            else next(iter(store.rounds.of_task(number, after=tested - 1, limit=1)), None),
            "checkpoints": _page(
                request, "saved_before", SHOWN_CHECKPOINTS, partial(store.checkpoints.of_task, number)
            ),
            "plan": store.tasks.plan(number),
            "statistics": shown_statistics(None if task.settings.trains else store.statistics.of_task(number)),
            "partition": partition_of_task(request, task) if with_partition else None,
            "events": store.events.newest(task=number, limit=SHOWN_EVENTS),
        }
        return self._live_part(request, "task.html", "_task.html", values)

    def stop(self, request: WebRequest, number: int) -> bottle.HTTPResponse:
        """Stop the task, and show its page."""
        submissions.stop(request, number)
        return see_other(f"/tasks/{number}")

    def resume(self, request: WebRequest, number: int) -> bottle.HTTPResponse:
        """Resume the task, and show its page."""
        submissions.resume(request, number)
        return see_other(f"/tasks/{number}")

    def continue_task(self, request: WebRequest, number: int) -> bottle.HTTPResponse:
        """Let the completed task go on for further rounds, and show its page."""
        submissions.continue_task(request, number, request.form.get("rounds", ""))
        return see_other(f"/tasks/{number}")

    def delete(self, request: WebRequest, number: int) -> bottle.HTTPResponse:
        """Request the deletion of the task, and show the list."""
        submissions.delete(request, number)
        return see_other("/tasks")

    # -- downloads
    def rounds_csv(self, request: WebRequest, number: int) -> bottle.HTTPResponse:
        """The rounds as CSV."""
        return rounds_csv(request.store, submissions.task_of(request, number))

    def rounds_json(self, request: WebRequest, number: int) -> bottle.HTTPResponse:
        """The task with its rounds as JSON."""
        return rounds_json(request.store, submissions.task_of(request, number))

    def partition_csv(self, request: WebRequest, number: int) -> bottle.HTTPResponse:
        """The partition as CSV."""
        return partition_csv(request, submissions.task_of(request, number))

    def checkpoint(self, request: WebRequest, number: int, round_number: int) -> bottle.HTTPResponse:
        """The file of a checkpoint, or with `part=json` its metadata."""
        task = submissions.task_of(request, number)
        return checkpoint_file(request, task, round_number, sidecar=request.query.get("part") == "json")


T = TypeVar("T", RoundRecord, Checkpoint)


@dataclass(frozen=True)
class RecordPage(Generic[T]):
    """A page of a task's rounds or checkpoints, newest first. The next page is `before` the round `older`, if any."""

    shown: list[T]
    before: int | None
    older: int | None


def _page(request: WebRequest, name: str, size: int, read: Callable[..., list[T]]) -> RecordPage[T]:
    """Read the page of `size` records that the query parameter `name` selects."""
    before = request.query_number(name, None, least=1, most=MOST_ROUNDS)
    found = read(before=before, limit=size + 1, newest=True)[::-1]
    return RecordPage(found[:size], before, found[size - 1].round if len(found) > size else None)


def _newest(newest_first: list[RoundRecord]) -> int:
    return newest_first[0].round if newest_first else 0


def _phases(rounds: list[RoundRecord]) -> list[str]:
    """The phases with a column in the table, in the order of a round."""
    names = {name for record in rounds for name in record.seconds}
    order = list(PHASES)
    return sorted(names, key=lambda name: (order.index(name) if name in PHASES else len(order), name))
