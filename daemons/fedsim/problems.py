"""Explains what pydantic rejects: one sentence for each type of error, in English here and translated by the web.

pydantic's own messages are written for programmers and never reach a user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError


def gettext_noop(text: str) -> str:
    """Mark a text for translation: pages look its translation up when they show it."""
    return text


Context = Mapping[str, Any]
Wording = tuple[str, dict[str, object]]
"""A text with %(name)s for each parameter, and the parameters."""


def _limit(name: str) -> Callable[[Context], dict[str, object]]:
    def parameters(context: Context) -> dict[str, object]:
        value = context.get(name)
        return {"limit": f"{value:.12g}" if isinstance(value, int | float) else value}

    return parameters


def _choices(context: Context) -> dict[str, object]:
    return {"choices": str(context["expected"]).replace(" or ", ", ").replace("'", "")}


def _nothing(_: Context) -> dict[str, object]:
    return {}


_WHOLE = (gettext_noop("must be a whole number"), _nothing)
_NUMBER = (gettext_noop("must be a number"), _nothing)
_TEXT = (gettext_noop("must be text"), _nothing)
_SWITCH = (gettext_noop("must be true or false"), _nothing)
_LIST = (gettext_noop("must be a list"), _nothing)
_MAPPING = (gettext_noop("must consist of names and values"), _nothing)
_CHOICE = (gettext_noop("must be one of %(choices)s"), _choices)
_NETWORK = (gettext_noop("must be a network such as 192.0.2.0/24 or 2001:db8::/32"), _nothing)
_OTHER = (gettext_noop("is not valid"), _nothing)
_WORDINGS: dict[str, tuple[str, Callable[[Context], dict[str, object]]]] = {
    "name": (
        gettext_noop("must be a name of at most 64 letters, digits, “_”, “.” or “-”, beginning with a letter or digit"),
        _nothing,
    ),
    "string_pattern_mismatch": (gettext_noop("has the wrong form"), _nothing),
    "missing": (gettext_noop("is missing"), _nothing),
    "extra_forbidden": (gettext_noop("is unknown"), _nothing),
    "greater_than_equal": (gettext_noop("must be at least %(limit)s"), _limit("ge")),
    "greater_than": (gettext_noop("must be greater than %(limit)s"), _limit("gt")),
    "less_than_equal": (gettext_noop("must be at most %(limit)s"), _limit("le")),
    "less_than": (gettext_noop("must be less than %(limit)s"), _limit("lt")),
    "multiple_of": (gettext_noop("must be a multiple of %(limit)s"), _limit("multiple_of")),
    "finite_number": (gettext_noop("must be a finite number"), _nothing),
    "int_parsing_size": (gettext_noop("is too large"), _nothing),
    "string_too_long": (gettext_noop("must have at most %(limit)s characters"), _limit("max_length")),
    "string_too_short": (gettext_noop("must have at least %(limit)s characters"), _limit("min_length")),
    "too_long": (gettext_noop("must have at most %(limit)s items"), _limit("max_length")),
    "too_short": (gettext_noop("must have at least %(limit)s items"), _limit("min_length")),
    **dict.fromkeys(("json_invalid", "invalid-json-value"), (gettext_noop("is not valid JSON"), _nothing)),
    "none_required": (gettext_noop("must be empty"), _nothing),
    "path_type": (gettext_noop("must be the path of a file or folder"), _nothing),
    "invalid_key": (gettext_noop("must have text as its keys"), _nothing),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing", "decimal_type", "decimal_parsing"), _NUMBER),
    **dict.fromkeys(("string_type", "string_unicode", "string_sub_type", "bytes_type"), _TEXT),
    **dict.fromkeys(("bool_type", "bool_parsing"), _SWITCH),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"), _LIST),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type"), _MAPPING),
    **dict.fromkeys(("literal_error", "enum"), _CHOICE),
    **dict.fromkeys(("ip_any_network", "ip_v4_network", "ip_v6_network"), _NETWORK),
}
_NAME_PATTERN = "A-Za-z0-9_.-"
OWN_TYPES = frozenset({"value_error", "option_problems"})
"""Types of errors that fedsim's own validators raise: their message is fedsim's."""


def wording(kind: str, context: Context) -> Wording:
    """The text of a type of error, and its parameters."""
    named = kind == "string_pattern_mismatch" and _NAME_PATTERN in str(context.get("pattern"))
    text, parameters = _WORDINGS.get("name" if named else kind, _OTHER)
    return text, parameters(context)


def problem_text(item: Any) -> str:
    """What is wrong, from one of `ValidationError.errors()`."""
    if item["type"] in OWN_TYPES:
        return str(item["msg"]).removeprefix("Value error, ")
    text, parameters = wording(item["type"], item.get("ctx", {}))
    return text % parameters


def location_text(location: Iterable[int | str]) -> str:
    """('nodes', 0, 'port') -> 'nodes[0].port', without pydantic's names of validators."""
    path = ""
    for part in location:
        if isinstance(part, str) and (part == "[key]" or re.fullmatch(r"[\w-]+\[.*\]", part)):
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def problems_text(error: ValidationError, most: int = 5) -> str:
    """The first problems, each with its place."""
    found: dict[str, str] = {}
    for item in error.errors(include_url=False, include_input=False):
        found.setdefault(location_text(item["loc"]), problem_text(item))
    return "; ".join(f"{place}: {problem}" if place else problem for place, problem in list(found.items())[:most])
