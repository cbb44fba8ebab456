"""The JSON API under /api/v1, with the same powers as the pages; `API.md` is its documentation."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeVar

import bottle

from fedsim import __version__
from fedsim.settings import PARTITIONS, STRATEGIES, TaskSettings
from fedsim.store.records import User, UserRole, UserState
from fedsim.web import accounts, submissions
from fedsim.web.catalogue import read_catalogue
from fedsim.web.downloads import checkpoint_file
from fedsim.web.errors import Fault, Problems, not_found, status_text
from fedsim.web.i18n import tr
from fedsim.web.request import WebRequest
from fedsim.web.responses import json_response
from fedsim.web.routes import Access, Route
from fedsim.web.views import plain, task_json, user_json

ROOT = "/api/v1"
PAGE_SIZE = 50
MAX_PAGE_SIZE = 500
MAX_ROUNDS = 1000
MOST_ROUNDS = 2**31 - 1
BIGGEST = 2**63 - 1
MAX_KEY_CHARACTERS = 255
Json = dict[str, Any]
E = TypeVar("E", bound=Enum)


class Api:
    """Questions and commands in JSON. An error is always {"error": text}, with {"problems": {field: text}} if any."""

    def routes(self) -> list[Route]:
        """What the API answers."""
        task = ROOT + "/tasks/<number:int>"
        return [
            Route("GET", ROOT + "/tasks", self.tasks),
            Route("POST", ROOT + "/tasks", self.submit),
            Route("GET", task, self.task),
            Route("DELETE", task, self.delete),
            Route("POST", task + "/stop", self.stop),
            Route("GET", task + "/rounds", self.rounds),
            Route("GET", task + "/events", self.events),
            Route("GET", task + "/checkpoints", self.checkpoints),
            Route("GET", task + "/checkpoints/<round_number:int>", self.checkpoint),
            Route("GET", ROOT + "/nodes", self.nodes),
            Route("GET", ROOT + "/options", self.options),
            Route("GET", ROOT + "/me", self.me),
            Route("GET", ROOT + "/tokens", self.tokens),
            Route("POST", ROOT + "/tokens", self.make_token),
            Route("DELETE", ROOT + "/tokens/<token_id:int>", self.delete_token),
            Route("GET", ROOT + "/users", self.users, Access.ADMIN),
            Route("PATCH", ROOT + "/users/<user_id:int>", self.change_user, Access.ADMIN),
            Route("POST", ROOT + "/users/<user_id:int>/reset-password", self.reset_password, Access.ADMIN),
        ]

    # -- tasks
    def tasks(self, visit: WebRequest) -> Json:
        """The visitor's tasks, newest first; with `all=1`, an administrator's question, everybody's."""
        everybody = visit.query.get("all") == "1"
        if everybody and not visit.is_admin:
            raise Fault(403, status_text(403))
        limit = visit.query_number("limit", PAGE_SIZE, least=1, most=MAX_PAGE_SIZE) or PAGE_SIZE
        before = visit.query_number("before", None, least=1, most=BIGGEST)
        owner = None if everybody else visit.person.id
        found = visit.store.tasks.newest(owner, limit=limit, before=before)
        return {"tasks": [task_json(visit.store, task) for task in found]}

    def submit(self, visit: WebRequest) -> bottle.HTTPResponse:
        """A new task from its settings, in our names or the original platform's."""
        made = submissions.submit(visit, visit.json_body(), _idempotency_key(visit))
        task = made.task
        content = {"task": task_json(visit.store, task), "notes": [visit.say(note) for note in made.notes]}
        response = json_response(content, 201 if made.is_new else 200)
        response.set_header("Location", f"{ROOT}/tasks/{task.number}")
        return response

    def task(self, visit: WebRequest, number: int) -> Json:
        """One task."""
        return {"task": task_json(visit.store, submissions.task_of(visit, number))}

    def stop(self, visit: WebRequest, number: int) -> bottle.HTTPResponse:
        """Stop a task: one that waits at once, one that runs as soon as the server hears of it."""
        return json_response({"task": task_json(visit.store, submissions.stop(visit, number))}, 202)

    def delete(self, visit: WebRequest, number: int) -> bottle.HTTPResponse:
        """Have the server delete a finished task."""
        return json_response({"task": task_json(visit.store, submissions.delete(visit, number))}, 202)

    def rounds(self, visit: WebRequest, number: int) -> Json:
        """The rounds so far, a page of them; round 0 is the evaluation of the initial model."""
        submissions.task_of(visit, number)
        found = visit.store.rounds.of_task(number, **_stretch(visit))
        return {"rounds": plain(found), "total": visit.store.rounds.count(number)}

    def events(self, visit: WebRequest, number: int) -> Json:
        """What happened to the task, newest first."""
        submissions.task_of(visit, number)
        limit = visit.query_number("limit", 200, least=1, most=1000) or 200
        return {"events": plain(visit.store.events.newest(task=number, limit=limit))}

    def checkpoints(self, visit: WebRequest, number: int) -> Json:
        """The saved models, a page of them; `url` is where one can be fetched, null once it was removed."""
        submissions.task_of(visit, number)
        return {
            "checkpoints": [
                plain(checkpoint)
                | {"url": None if checkpoint.removed_at else f"{ROOT}/tasks/{number}/checkpoints/{checkpoint.round}"}
                for checkpoint in visit.store.checkpoints.of_task(number, **_stretch(visit))
            ]
        }

    def checkpoint(self, visit: WebRequest, number: int, round_number: int) -> bottle.HTTPResponse:
        """A saved model's file, or with `part=json` the JSON beside it."""
        task = submissions.task_of(visit, number)
        return checkpoint_file(visit, task, round_number, sidecar=visit.query.get("part") == "json")

    # -- what there is
    def nodes(self, visit: WebRequest) -> Json:
        """The nodes as they last announced themselves."""
        return {"nodes": plain(read_catalogue(visit.site).nodes)}

    def options(self, visit: WebRequest) -> Json:
        """What a task may be made of, the defaults, and the settings' JSON schema."""
        catalogue = read_catalogue(visit.site)
        return {
            "version": __version__,
            "models": list(catalogue.models),
            "datasets": plain(list(catalogue.datasets.values())),
            "partitions": list(PARTITIONS),
            "strategies": list(STRATEGIES),
            "defaults": plain(TaskSettings.model_validate({})),
            "schema": TaskSettings.model_json_schema(),
        }

    # -- accounts
    def me(self, visit: WebRequest) -> Json:
        """Who asks."""
        return {"user": user_json(visit.person)}

    def tokens(self, visit: WebRequest) -> Json:
        """One's own bearer tokens, without their secrets."""
        return {"tokens": plain(visit.store.tokens.of_user(visit.person.id))}

    def make_token(self, visit: WebRequest) -> bottle.HTTPResponse:
        """A new bearer token; its secret is in this answer and nowhere else."""
        label = visit.json_body().get("label", "")
        secret, token = accounts.make_token(visit.store, visit.person, label, now=visit.now)
        return json_response({"token": plain(token), "secret": secret}, 201)

    def delete_token(self, visit: WebRequest, token_id: int) -> Json:
        """Make a bearer token worthless."""
        if not 0 < token_id <= BIGGEST or not visit.store.tokens.delete(visit.person.id, token_id):
            raise not_found()
        return {"deleted": token_id}

    def users(self, visit: WebRequest) -> Json:
        """Everybody with an account."""
        return {"users": [user_json(user) for user in visit.store.users.all()]}

    def change_user(self, visit: WebRequest, user_id: int) -> Json:
        """Change somebody's state or role."""
        user = user_of(visit, user_id)
        body = visit.json_body()
        state, role = _choice(UserState, body, "state"), _choice(UserRole, body, "role")
        accounts.change_user(visit.store, user, by=visit.person, state=state, role=role, now=visit.now)
        return {"user": user_json(user_of(visit, user_id))}

    def reset_password(self, visit: WebRequest, user_id: int) -> Json:
        """Give somebody a generated password, which is in this answer and nowhere else."""
        user = user_of(visit, user_id)
        return {"password": accounts.reset_password(visit.store, user, by=visit.person, now=visit.now)}


def user_of(visit: WebRequest, user_id: int) -> User:
    """The user with this id, for administrators.

    Raises:
        Fault: 404 if there is none.
    """
    user = visit.store.users.get(user_id) if 0 < user_id <= BIGGEST else None
    if user is None:
        raise not_found()
    return user


def _stretch(visit: WebRequest) -> dict[str, Any]:
    """Which of a task's rounds or checkpoints the address asks for."""
    return {
        "after": visit.query_number("after", None, least=0, most=MOST_ROUNDS),
        "limit": visit.query_number("limit", MAX_ROUNDS, least=1, most=MAX_ROUNDS),
        "newest": visit.query.get("newest") == "1",
    }


def _idempotency_key(visit: WebRequest) -> str:
    key = visit.header("Idempotency-Key")
    if len(key) > MAX_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
        raise Fault(
            400, tr("Idempotency-Key must have at most %(limit)s printable characters.", limit=MAX_KEY_CHARACTERS)
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
        raise Fault(422, tr("The user cannot be changed like this."), problems=problems) from error
