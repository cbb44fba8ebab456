"""The tables of the kinds of files that hosts send to each other, and of what their messages contain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc

from markdown_table import table

from fedsim.messages import Message
from fedsim.spool.kinds import KINDS, ArrayBody, JsonBody, Kind, KindRoute, ParametersBody


def message_kinds() -> str:
    """The kinds of files that hosts send to each other."""
    rows = []
    for kind, spec in KINDS.items():
        ways = ", ".join(_way(route) + (" if announced" if route.announced else "") for route in spec.routes)
        needs = "yes" if spec.on_demand else "no"
        rows.append([f"`{kind}`", ways, f"`{spec.path.text}`", f"`{spec.limit}`", needs])
    return table(["kind", "sender → receiver", "path in the spool", "limit", "must be requested"], rows)


def message_bodies() -> str:
    """What each kind contains: its message with all fields, or its arrays."""
    return table(["kind", "sender → receiver", "content"], list(_bodies()))


def _bodies() -> Iterator[list[str]]:
    for kind, spec in KINDS.items():
        for route in spec.routes:
            yield [f"`{kind}`", _way(route), _content(kind, route)]


def _types(body: ArrayBody) -> str:
    return body.dtype if isinstance(body.dtype, str) else " or ".join(body.dtype)


def _content(kind: Kind, route: KindRoute) -> str:
    match route.body:
        case JsonBody(model):
            return f"JSON: {_fields(kind, model)}"
        case ParametersBody(meta):
            encoded = ", or what the task's transforms make of it" if kind is Kind.LOCALPARAM else ""
            return f"float32 [P], finite{encoded}; `meta`: {_fields(kind, meta)}"
        case dict() as parts:
            shown = (
                f"`{part}`: {_types(body)} of {body.dimensions.start} to {body.dimensions.stop - 1} dimensions"
                for part, body in parts.items()
            )
            return "arrays, " + "; ".join(shown)
    raise ValueError(f"{kind} has a body that this table does not show")


def _fields(kind: Kind, model: type[Message]) -> str:
    summary = " ".join(cleandoc(model.__doc__ or "").partition("\n\n")[0].split())
    summary = re.sub(rf"^`{kind}`:? ?", "", summary).rstrip(".")
    named = ", ".join(
        f"`{name}`" + (f" ({field.description})" if field.description else "")
        for name, field in model.model_fields.items()
    )
    return f"{summary}. Fields: {named or 'none'}"


def _way(route: KindRoute) -> str:
    return f"{route.sender} → {route.receiver}"
