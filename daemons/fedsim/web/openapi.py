"""The OpenAPI document of the JSON API, generated from its routes, the records and the settings.

A route's `Contract` says what it takes and answers; everything else (paths, parameters in them, summaries, who may call
it) derives from the route itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from fedsim import __version__
from fedsim.learning.metrics import ClassValues, MetricValues
from fedsim.settings import TaskSettings
from fedsim.store import records
from fedsim.web.announcements import NodeView
from fedsim.web.catalogue import DataSetSummary

if TYPE_CHECKING:
    from fedsim.web.routes import Route

Schema = dict[str, Any]
_PARAMETER = re.compile(r"<(\w+):int>")
_COMPONENTS = "#/components/schemas/"
INTEGER: Final[Schema] = {"type": "integer"}
TEXT: Final[Schema] = {"type": "string"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
NUMBER: Final[Schema] = {"type": ["number", "null"]}


@dataclass(frozen=True)
class Query:
    """A parameter of the query."""

    name: str
    schema: Schema


@dataclass(frozen=True)
class Contract:
    """What a route of the API takes and answers.

    Attributes:
        answers: the schema of each successful status; None for a file.
        query: parameters of the query.
        body: of the request; None if it takes none.
        headers: of the request.
        errors: statuses of errors besides 401, 403 and 429, which any route has.
    """

    answers: dict[int, Schema | None]
    query: tuple[Query, ...] = ()
    body: Schema | None = None
    headers: tuple[Query, ...] = ()
    errors: tuple[int, ...] = field(default=())


def component(name: str) -> Schema:
    """A reference to a schema of the document."""
    return {"$ref": f"{_COMPONENTS}{name}"}


def an_object(**properties: Schema) -> Schema:
    """An object with exactly these properties, all of which are there."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def a_list(items: Schema) -> Schema:
    """A list of these items."""
    return {"type": "array", "items": items}


def a_map(values: Schema) -> Schema:
    """An object with any names and these values."""
    return {"type": "object", "additionalProperties": values}


ERROR: Final[Schema] = {
    "type": "object",
    "properties": {"error": TEXT, "problems": a_map(TEXT)},
    "required": ["error"],
    "additionalProperties": False,
}


def document(routes: Iterable[Route]) -> Schema:
    """The document, as JSON values, of those routes that have a contract."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.contract is not None:
            path = _PARAMETER.sub(r"{\1}", route.path)
            paths.setdefault(path, {})[route.method.lower()] = _operation(route, route.contract)
    return {
        "openapi": "3.1.0",
        "info": {"title": "fedsim", "version": __version__, "summary": "The JSON API of fedsim's web"},
        "paths": paths,
        "security": [{"bearer": []}],
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
    }


def _operation(route: Route, contract: Contract) -> Schema:
    summary = (route.handler.__doc__ or "").split("\n")[0].strip()
    in_path = [(name, "path", {**INTEGER, "minimum": 0}) for name in _PARAMETER.findall(route.path)]
    in_query = [(item.name, "query", item.schema) for item in contract.query]
    in_headers = [(item.name, "header", item.schema) for item in contract.headers]
    errors = {401, 403, 429, *contract.errors, *([404] if in_path else []), *([400, 413, 422] if contract.body else [])}
    if contract.query:
        errors.add(422)
    operation: Schema = {
        "operationId": route.handler.__name__,
        "summary": summary,
        "parameters": [
            {"name": name, "in": place, "required": place == "path", "schema": schema}
            for name, place, schema in (*in_path, *in_query, *in_headers)
        ],
        "responses": {
            **{str(status): _answer(schema) for status, schema in contract.answers.items()},
            **{str(status): {"description": "An error", "content": _json(ERROR)} for status in sorted(errors)},
        },
    }
    if contract.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(contract.body)}
    return operation


def _answer(schema: Schema | None) -> Schema:
    content = {"application/octet-stream": {}, "application/json": {}} if schema is None else _json(schema)
    return {"description": "Success", "content": content}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


@cache
def _schemas() -> dict[str, Schema]:
    """The named schemas: records as the API shows them, settings and announcements."""
    found: dict[str, Schema] = {}
    for name, record, extra, hidden in (
        ("Task", records.Task, _TASK, ()),
        ("Round", records.RoundRecord, {}, ()),
        ("Checkpoint", records.Checkpoint, {"url": {"type": ["string", "null"]}}, ()),
        ("Event", records.Event, {}, ()),
        ("Node", NodeView, {}, ()),
        ("DataSet", DataSetSummary, {}, ()),
        ("Token", records.Token, {}, ()),
        ("User", records.User, {"second_factor": BOOLEAN}, ("password_hash", "totp_secret", "openid_key")),
    ):
        schema = _schema_of(record)
        found |= schema.pop("$defs", {})
        properties = {key: value for key, value in schema["properties"].items() if key not in hidden} | extra
        found[name] = {**schema, **an_object(**properties), "title": name}
    settings = TaskSettings.model_json_schema(ref_template=_COMPONENTS + "{model}")
    found |= settings.pop("$defs", {})
    return {name: _as_shown(schema) for name, schema in {**found, "Settings": settings}.items()}


_TASK: Final[dict[str, Schema]] = {
    "headline": TEXT,
    "metric_info": a_map(
        an_object(
            label=TEXT,
            format=TEXT,
            higher_is_better={"type": ["boolean", "null"]},
            per_class=BOOLEAN,
            by_prediction=BOOLEAN,
        )
    ),
    "num_clients": INTEGER,
    "cohort_size": INTEGER,
    "queue_position": {"type": ["integer", "null"]},
    "url": TEXT,
}


def _schema_of(record: Any) -> Schema:
    adapter: TypeAdapter[Any] = TypeAdapter(record)
    names = {"MetricValues": MetricValues, "ClassValues": ClassValues}  # records name these for type checkers only
    adapter.rebuild(force=True, raise_errors=True, _types_namespace={**vars(records), **names})
    return adapter.json_schema(mode="serialization", ref_template=_COMPONENTS + "{model}")


def _as_shown(schema: Any) -> Any:
    """Numbers that are not finite are shown as null."""
    if isinstance(schema, list):
        return [_as_shown(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    shown = {key: _as_shown(value) for key, value in schema.items()}
    if shown.get("type") == "number":
        shown["type"] = ["number", "null"]
    return shown
