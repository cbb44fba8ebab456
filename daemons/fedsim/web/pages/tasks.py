"""Pages of tasks: the list, the page that lives, and what can be done with a task."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import bottle

from fedsim.store.interface import RoundRecord, Task
from fedsim.web import forms, submissions
from fedsim.web.charts import charts_of
from fedsim.web.downloads import checkpoint_file, rounds_csv, rounds_json
from fedsim.web.rendering import Renderer
from fedsim.web.responses import see_other
from fedsim.web.routes import Access, Route
from fedsim.web.views import PHASES, task_view
from fedsim.web.visit import Visit

PAGE_SIZE = 20
SHOWN_ROUNDS = 50
SHOWN_EVENTS = 50
ROUNDS_PER_SECOND = 2000
BIGGEST = 2**63 - 1


class TaskPages:
    """The list of tasks, and a task's own page."""

    def __init__(self, renderer: Renderer) -> None:
        self._page = renderer.page

    def routes(self) -> list[Route]:
        """What these pages answer."""
        task = "/tasks/<number:int>"
        return [
            Route("GET", "/tasks", self.mine),
            Route("GET", "/admin/tasks", self.everybodys, Access.ADMIN),
            Route("GET", task, self.task),
            Route("POST", task + "/stop", self.stop),
            Route("POST", task + "/delete", self.delete),
            Route("GET", task + "/rounds.csv", self.rounds_csv),
            Route("GET", task + "/rounds.json", self.rounds_json),
            Route("GET", task + "/checkpoints/<round_number:int>", self.checkpoint),
        ]

    # -- lists
    def mine(self, visit: Visit) -> str | bottle.HTTPResponse:
        """The visitor's own tasks."""
        return self._list(visit, visit.person.id, "/tasks")

    def everybodys(self, visit: Visit) -> str | bottle.HTTPResponse:
        """All tasks, for administrators."""
        return self._list(visit, None, "/admin/tasks")

    def _list(self, visit: Visit, owner: int | None, path: str) -> str | bottle.HTTPResponse:
        before = visit.query_number("before", None, least=1, most=BIGGEST)
        found = visit.store.tasks(owner, limit=PAGE_SIZE + 1, before=before)
        views = [task_view(visit.store, task) for task in found[:PAGE_SIZE]]
        older = found[PAGE_SIZE - 1].number if len(found) > PAGE_SIZE else None
        values = {
            "tasks": views,
            "older": older,
            "before": before,
            "path": path,
            "everybody": owner is None,
            "live": any(view.live for view in views),
        }
        return self._live_part(visit, "tasks.html", "_tasks.html", values)

    def _live_part(self, visit: Visit, page: str, part: str, values: dict[str, Any]) -> str | bottle.HTTPResponse:
        """The whole page, or for htmx its live part – or nothing, if that has not changed since it was fetched."""
        body = self._page(visit, part, **values, seen="")
        digest = blake2b(body.encode(), digest_size=8).hexdigest()
        if not visit.header("HX-Request"):
            return self._page(visit, page, **values, seen=digest)
        if visit.query.get("seen") == digest:
            return bottle.HTTPResponse(status=204)
        return self._page(visit, part, **values, seen=digest)

    # -- one task
    def task(self, visit: Visit, number: int) -> str | bottle.HTTPResponse:
        """A task's page."""
        return self._task(visit, submissions.task_of(visit, number))

    def _task(self, visit: Visit, task: Task) -> str | bottle.HTTPResponse:
        rounds = visit.store.rounds(task.number)
        view = task_view(visit.store, task, rounds)
        values = {
            "view": view,
            "task": task,
            "settings": task.settings,
            "fields": forms.FIELDS,
            "filled": forms.filled(task.settings),
            # A task of very many rounds is looked at less often: each look reads them all.
            "look_every": 1 + len(rounds) // ROUNDS_PER_SECOND,
            "charts": charts_of(rounds, task.settings.num_rounds),
            "rounds": rounds[::-1][:SHOWN_ROUNDS],
            "num_rounds_recorded": len(rounds),
            "phases": _phases(rounds),
            "recall": next((record for record in reversed(rounds) if record.recall), None),
            "checkpoints": visit.store.checkpoints(task.number)[::-1],
            "events": visit.store.events(task=task.number, limit=SHOWN_EVENTS),
        }
        return self._live_part(visit, "task.html", "_task.html", values)

    def stop(self, visit: Visit, number: int) -> bottle.HTTPResponse:
        """Stop the task and look at it."""
        submissions.stop(visit, number)
        return see_other(f"/tasks/{number}")

    def delete(self, visit: Visit, number: int) -> bottle.HTTPResponse:
        """Have the task deleted and go back to the list."""
        submissions.delete(visit, number)
        return see_other("/tasks")

    # -- downloads
    def rounds_csv(self, visit: Visit, number: int) -> bottle.HTTPResponse:
        """The rounds as a table for other programs."""
        task = submissions.task_of(visit, number)
        return rounds_csv(task, visit.store.rounds(number))

    def rounds_json(self, visit: Visit, number: int) -> bottle.HTTPResponse:
        """The task with its rounds as JSON."""
        task = submissions.task_of(visit, number)
        return rounds_json(visit.store, task)

    def checkpoint(self, visit: Visit, number: int, round_number: int) -> bottle.HTTPResponse:
        """A saved model, or with `part=json` the JSON beside it."""
        task = submissions.task_of(visit, number)
        return checkpoint_file(visit, task, round_number, sidecar=visit.query.get("part") == "json")


def _phases(rounds: list[RoundRecord]) -> list[str]:
    """The phases that the table has columns for, in the order in which a round goes through them."""
    names = {name for record in rounds for name in record.seconds}
    order = list(PHASES)
    return sorted(names, key=lambda name: (order.index(name) if name in PHASES else len(order), name))
