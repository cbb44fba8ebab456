"""The JSON API under /api/v1, with the same powers as the pages; `API.md` is its documentation."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeVar

import bottle

from fedsim import __version__, plugins
from fedsim.plugin_settings import PLUGIN_LISTS, PLUGIN_SETTINGS
from fedsim.settings import TaskSettings
from fedsim.store.records import User, UserRole, UserState
from fedsim.web import accounts, contracts, submissions
from fedsim.web.catalogue import check_settings, read_catalogue
from fedsim.web.downloads import checkpoint_file
from fedsim.web.errors import Fault, Problems, not_found, status_text
from fedsim.web.i18n import tr
from fedsim.web.openapi import document
from fedsim.web.partitions import partition_of_settings, partition_of_task
from fedsim.web.request import WebRequest
from fedsim.web.responses import json_response
from fedsim.web.routes import Access, Route
from fedsim.web.views import plain, task_json, tasks_json, user_json

ROOT = "/api/v1"
PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
MAX_ROUNDS = 1000
MOST_ROUNDS = 2**31 - 1
BIGGEST = 2**63 - 1
Json = dict[str, Any]
E = TypeVar("E", bound=Enum)


class ApiRoutes:
    """The routes of the API. An error is always {"error": text}, with {"problems": {field: text}} if there are any."""

    def routes(self) -> list[Route]:
        """The routes."""
        task = ROOT + "/tasks/<number:int>"
        user = ROOT + "/users/<user_id:int>"
        return [
            Route("GET", ROOT + "/tasks", self.tasks, contract=contracts.TASKS),
            Route("POST", ROOT + "/tasks", self.submit, contract=contracts.SUBMIT),
            Route("GET", task, self.task, contract=contracts.TASK),
            Route("DELETE", task, self.delete, contract=contracts.CHANGE_TASK),
            Route("POST", task + "/stop", self.stop, contract=contracts.CHANGE_TASK),
            Route("POST", task + "/resume", self.resume, contract=contracts.CHANGE_TASK),
            Route("POST", task + "/continue", self.continue_task, contract=contracts.CONTINUE_TASK),
            Route("GET", task + "/rounds", self.rounds, contract=contracts.ROUNDS),
            Route("GET", task + "/participation", self.participation, contract=contracts.PARTICIPATION),
            Route("GET", task + "/plan", self.plan, contract=contracts.PLAN),
            Route("GET", task + "/statistics", self.statistics, contract=contracts.STATISTICS),
            Route("GET", task + "/partition", self.partition, contract=contracts.PARTITION),
            Route("POST", ROOT + "/partition", self.preview, contract=contracts.PREVIEW),
            Route("GET", task + "/events", self.events, contract=contracts.EVENTS),
            Route("GET", task + "/checkpoints", self.checkpoints, contract=contracts.CHECKPOINTS),
            Route("GET", task + "/checkpoints/<round_number:int>", self.checkpoint, contract=contracts.CHECKPOINT),
            Route("GET", ROOT + "/nodes", self.nodes, contract=contracts.NODES),
            Route("GET", ROOT + "/options", self.options, contract=contracts.OPTIONS),
            Route("GET", ROOT + "/me", self.me, contract=contracts.ME),
            Route("GET", ROOT + "/tokens", self.tokens, contract=contracts.TOKENS),
            Route("POST", ROOT + "/tokens", self.make_token, contract=contracts.MAKE_TOKEN),
            Route("DELETE", ROOT + "/tokens/<token_id:int>", self.delete_token, contract=contracts.DELETE_TOKEN),
            Route("GET", ROOT + "/users", self.users, Access.ADMIN, contract=contracts.USERS),
            Route("PATCH", user, self.change_user, Access.ADMIN, contract=contracts.CHANGE_USER),
            Route(
                "POST", user + "/reset-password", self.reset_password, Access.ADMIN, contract=contracts.RESET_PASSWORD
            ),
            Route("GET", ROOT + "/openapi.json", self.openapi, Access.ANYONE, always=True),
        ]

    def openapi(self, request: WebRequest) -> Json:  # noqa: ARG002 - the same for everyone
        """The OpenAPI document of these routes."""
        return document(self.routes())

    # -- tasks
    def tasks(self, request: WebRequest) -> Json:
        """The user's tasks, newest first; with `all=1`, for administrators, those of all users."""
        everybody = request.query.get("all") == "1"
        if everybody and not request.is_admin:
            raise Fault(403, status_text(403))
        limit = request.query_number("limit", PAGE_SIZE, least=1, most=MAX_PAGE_SIZE) or PAGE_SIZE
        before = request.query_number("before", None, least=1, most=BIGGEST)
        owner = None if everybody else request.authenticated_user.id
        found = request.store.tasks.newest(owner, limit=limit, before=before)
        return {"tasks": tasks_json(request.store, found)}

    def submit(self, request: WebRequest) -> bottle.HTTPResponse:
        """Submit a task from its settings, by their names here or those of the original platform.

        With `repeats`, the number of a task, its plan is taken where it still fits.
        """
        repeats = request.query_number("repeats", None, least=1, most=BIGGEST)
        made = submissions.submit(request, request.json_body(), _idempotency_key(request), repeats=repeats)
        task = made.task
        content = {"task": task_json(request.store, task), "notes": [request.translate(note) for note in made.notes]}
        response = json_response(content, 201 if made.is_new else 200)
        response.set_header("Location", f"{ROOT}/tasks/{task.number}")
        return response

    def task(self, request: WebRequest, number: int) -> Json:
        """One task."""
        return {"task": task_json(request.store, submissions.task_of(request, number))}

    def stop(self, request: WebRequest, number: int) -> bottle.HTTPResponse:
        """Stop a task: a pending one immediately, a running one as soon as the server is notified."""
        return json_response({"task": task_json(request.store, submissions.stop(request, number))}, 202)

    def resume(self, request: WebRequest, number: int) -> bottle.HTTPResponse:
        """Let a failed or stopped task continue after its last committed round."""
        return json_response({"task": task_json(request.store, submissions.resume(request, number))}, 202)

    def continue_task(self, request: WebRequest, number: int) -> bottle.HTTPResponse:
        """Let a completed task go on for `rounds` more."""
        task = submissions.continue_task(request, number, request.json_body().get("rounds"))
        return json_response({"task": task_json(request.store, task)}, 202)

    def delete(self, request: WebRequest, number: int) -> bottle.HTTPResponse:
        """Have the server delete a finished task."""
        return json_response({"task": task_json(request.store, submissions.delete(request, number))}, 202)

    def rounds(self, request: WebRequest, number: int) -> Json:
        """The recorded rounds, paginated; round 0 is the evaluation of the initial model."""
        submissions.task_of(request, number)
        found = request.store.rounds.of_task(number, **_stretch(request))
        return {"rounds": plain(found), "total": request.store.rounds.count(number)}

    def participation(self, request: WebRequest, number: int) -> Json:
        """How the nodes took part, and the clients without which rounds went on, by round and by client."""
        task = submissions.task_of(request, number)
        missing = request.store.rounds.missing(number)
        clients: dict[int, list[int]] = {}
        for round_number, lost in missing.items():
            for client in lost:
                clients.setdefault(client, []).append(round_number)
        found: Json = plain({"nodes": task.participation, "missing": missing, "clients": dict(sorted(clients.items()))})
        return found

    def plan(self, request: WebRequest, number: int) -> Json:
        """How each node trains the task: engine, processes, threads, chunk size; null before it is planned."""
        submissions.task_of(request, number)
        return {"plan": request.store.tasks.plan(number)}

    def statistics(self, request: WebRequest, number: int) -> Json:
        """What the nodes reported of their data; null for other kinds of tasks, and until all have."""
        submissions.task_of(request, number)
        return {"statistics": request.store.statistics.of_task(number)}

    def partition(self, request: WebRequest, number: int) -> Json:
        """How the task divides its data among clients; null with the reason where it is not shown."""
        return partition_of_task(request, submissions.task_of(request, number)).document(request)

    def preview(self, request: WebRequest) -> Json:
        """How a task with these settings would divide the data; nothing is submitted."""
        settings, _ = check_settings(request.json_body(), read_catalogue(request.site))
        return partition_of_settings(request, settings).document(request)

    def events(self, request: WebRequest, number: int) -> Json:
        """The events of the task, newest first."""
        submissions.task_of(request, number)
        limit = request.query_number("limit", 200, least=1, most=1000) or 200
        return {"events": plain(request.store.events.newest(task=number, limit=limit))}

    def checkpoints(self, request: WebRequest, number: int) -> Json:
        """The checkpoints, paginated; `url` is null if a checkpoint was removed."""
        submissions.task_of(request, number)
        return {
            "checkpoints": [
                plain(checkpoint)
                | {"url": None if checkpoint.removed_at else f"{ROOT}/tasks/{number}/checkpoints/{checkpoint.round}"}
                for checkpoint in request.store.checkpoints.of_task(number, **_stretch(request))
            ]
        }

    def checkpoint(self, request: WebRequest, number: int, round_number: int) -> bottle.HTTPResponse:
        """The file of a checkpoint, or with `part=json` its metadata."""
        task = submissions.task_of(request, number)
        return checkpoint_file(request, task, round_number, sidecar=request.query.get("part") == "json")

    # -- nodes and options
    def nodes(self, request: WebRequest) -> Json:
        """The latest announcement of every node."""
        return {"nodes": plain(read_catalogue(request.site).nodes)}

    def options(self, request: WebRequest) -> Json:
        """Available models, data sets and plug-ins, the defaults, and the JSON schema of the settings."""
        catalogue = read_catalogue(request.site)
        return {
            "version": __version__,
            "models": list(plugins.names(plugins.MODELS)),
            "datasets": plain(list(catalogue.datasets.values())),
            "partitions": list(plugins.names(plugins.PARTITIONS)),
            "strategies": list(plugins.names(plugins.STRATEGIES)),
            "plugins": {
                setting: [plugin.model_dump(mode="json") for plugin in plugins.describe(group)]
                for setting, group in (PLUGIN_SETTINGS | PLUGIN_LISTS).items()
            },
            "defaults": plain(TaskSettings.model_validate({})),
            "schema": TaskSettings.model_json_schema(),
        }

    # -- accounts
    def me(self, request: WebRequest) -> Json:
        """The authenticated user."""
        return {"user": user_json(request.authenticated_user)}

    def tokens(self, request: WebRequest) -> Json:
        """The user's bearer tokens, without their secrets."""
        return {"tokens": plain(request.store.tokens.of_user(request.authenticated_user.id))}

    def make_token(self, request: WebRequest) -> bottle.HTTPResponse:
        """Create a bearer token; its secret is only in this response."""
        body = request.json_body()
        secret, token = accounts.make_token(
            request.store,
            request.authenticated_user,
            body.get("label", ""),
            now=request.now,
            days=body.get("days"),
            max_days=request.config.max_token_days,
        )
        return json_response({"token": plain(token), "secret": secret}, 201)

    def delete_token(self, request: WebRequest, token_id: int) -> Json:
        """Revoke a bearer token."""
        if not 0 < token_id <= BIGGEST or not request.store.tokens.delete(request.authenticated_user.id, token_id):
            raise not_found()
        return {"deleted": token_id}

    def users(self, request: WebRequest) -> Json:
        """All users."""
        return {"users": [user_json(user) for user in request.store.users.all()]}

    def change_user(self, request: WebRequest, user_id: int) -> Json:
        """Change a user's state or role."""
        user = user_of(request, user_id)
        body = request.json_body()
        state, role = _choice(UserState, body, "state"), _choice(UserRole, body, "role")
        accounts.change_user(
            request.store, user, by=request.authenticated_user, state=state, role=role, now=request.now
        )
        return {"user": user_json(user_of(request, user_id))}

    def reset_password(self, request: WebRequest, user_id: int) -> Json:
        """Set a generated password for a user; it is only in this response."""
        user = user_of(request, user_id)
        return {
            "password": accounts.reset_password(request.store, user, by=request.authenticated_user, now=request.now)
        }


def user_of(request: WebRequest, user_id: int) -> User:
    """Return the user with this id.

    Raises:
        Fault: 404 if there is none.
    """
    user = request.store.users.get(user_id) if 0 < user_id <= BIGGEST else None
    if user is None:
        raise not_found()
    return user


def _stretch(request: WebRequest) -> dict[str, Any]:
    """The pagination parameters of rounds and checkpoints."""
    return {
        "after": request.query_number("after", None, least=0, most=MOST_ROUNDS),
        "limit": request.query_number("limit", MAX_ROUNDS, least=1, most=MAX_ROUNDS),
        "newest": request.query.get("newest") == "1",
    }


def _idempotency_key(request: WebRequest) -> str:
    key = request.header("Idempotency-Key")
    if len(key) > contracts.MAX_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
        raise Fault(
            400,
            tr("Idempotency-Key must have at most %(limit)s printable characters.", limit=contracts.MAX_KEY_CHARACTERS),
        )
    return key


def _choice(kind: type[E], body: Json, field: str) -> E | None:
    if body.get(field) is None:
        return None
    try:
        return kind(body[field])
    except ValueError as error:
        choices = ", ".join(str(member.value) for member in kind)
        problems: Problems = {field: tr("must be one of %(choices)s", choices=choices)}
        raise Fault(422, tr("The user cannot be changed: a value is invalid."), problems=problems) from error
