"""What the routes of the JSON API take and answer, see `openapi.Contract`."""

from __future__ import annotations

from typing import Final

from fedsim.settings import MOST_ROUNDS
from fedsim.store.records import UserRole, UserState
from fedsim.web.accounts import MAX_LABEL_CHARACTERS
from fedsim.web.openapi import BOOLEAN, INTEGER, TEXT, Contract, Query, a_list, a_map, an_object, component

MAX_KEY_CHARACTERS: Final = 255
_STRETCH: Final = (Query("after", INTEGER), Query("limit", INTEGER), Query("newest", {"enum": ["0", "1"]}))

TASK = Contract({200: an_object(task=component("Task"))})
CHANGE_TASK = Contract({202: an_object(task=component("Task"))}, errors=(409,))
CONTINUE_TASK = Contract(
    {202: an_object(task=component("Task"))},
    body={
        "type": "object",
        "properties": {"rounds": {**INTEGER, "minimum": 1, "maximum": MOST_ROUNDS}},
        "required": ["rounds"],
    },
    errors=(409,),
)
EVENTS = Contract({200: an_object(events=a_list(component("Event")))}, (Query("limit", INTEGER),))
CHECKPOINTS = Contract({200: an_object(checkpoints=a_list(component("Checkpoint")))}, _STRETCH)
NODES = Contract({200: an_object(nodes=a_list(component("Node")))})
ME = Contract({200: an_object(user=component("User"))})
TOKENS = Contract({200: an_object(tokens=a_list(component("Token")))})
DELETE_TOKEN = Contract({200: an_object(deleted=INTEGER)})
USERS = Contract({200: an_object(users=a_list(component("User")))})
RESET_PASSWORD = Contract({200: an_object(password=TEXT)})
TASKS = Contract(
    {200: an_object(tasks=a_list(component("Task")))},
    (Query("limit", INTEGER), Query("before", INTEGER), Query("all", {"enum": ["0", "1"]})),
)
_SUBMITTED = an_object(task=component("Task"), notes=a_list(TEXT))
SUBMIT = Contract(
    {200: _SUBMITTED, 201: _SUBMITTED},
    (Query("repeats", INTEGER),),
    body=component("Settings"),
    headers=(Query("Idempotency-Key", {**TEXT, "pattern": "^[ -~]*$", "maxLength": MAX_KEY_CHARACTERS}),),
    errors=(404,),
)
PLAN = Contract({200: an_object(plan={"type": ["object", "null"]})})
STATISTICS = Contract({200: an_object(statistics={"type": ["object", "null"]})})
_NUMBERS = a_list({"type": "number"})
_PARTITION = an_object(
    num_clients=INTEGER,
    exact=BOOLEAN,
    clients=a_list(TEXT),
    labels=a_list(TEXT),
    sizes=a_list(INTEGER),
    counts=a_list(a_list(INTEGER)),
    distances=_NUMBERS,
    mean_distance={"type": "number"},
    pair_distance={"type": "number"},
)
_SHOWN_PARTITION = an_object(
    partition={"anyOf": [_PARTITION, {"type": "null"}]}, hidden=a_list(TEXT), reason={"type": ["string", "null"]}
)
PARTITION = Contract({200: _SHOWN_PARTITION})
PREVIEW = Contract({200: _SHOWN_PARTITION}, body=component("Settings"))
ROUNDS = Contract({200: an_object(rounds=a_list(component("Round")), total=INTEGER)}, _STRETCH)
PARTICIPATION = Contract(
    {200: an_object(nodes=a_map(a_map(INTEGER)), missing=a_map(a_list(INTEGER)), clients=a_map(a_list(INTEGER)))}
)
CHECKPOINT = Contract(
    {200: None, 206: None, 304: None}, (Query("part", {"enum": ["json", "file"]}),), errors=(410, 416)
)
OPTIONS = Contract(
    {
        200: an_object(
            version=TEXT,
            models=a_list(TEXT),
            datasets=a_list(component("DataSet")),
            partitions=a_list(TEXT),
            strategies=a_list(TEXT),
            plugins=a_map(a_list({"type": "object"})),
            defaults=component("Settings"),
            schema={"type": "object"},
        )
    }
)
MAKE_TOKEN = Contract(
    {201: an_object(token=component("Token"), secret=TEXT)},
    body={
        "type": "object",
        "properties": {
            "label": {**TEXT, "minLength": 1, "maxLength": MAX_LABEL_CHARACTERS},
            "days": {"type": ["integer", "null"], "minimum": 1},
        },
        "required": ["label"],
    },
)
CHANGE_USER = Contract(
    {200: an_object(user=component("User"))},
    body={
        "type": "object",
        "properties": {
            "state": {"enum": [*(state.value for state in UserState), None]},
            "role": {"enum": [*(role.value for role in UserRole), None]},
        },
    },
)
