"""Loads a YAML file into a validated, frozen model, and reports all errors at once."""

from __future__ import annotations

import re
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fedsim.errors import ConfigError
from fedsim.problems import location_text, problem_text

Model = TypeVar("Model", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Rejects a repeated key, of which plain YAML would silently use the last one.

    Every key is text as it is written, so that `no`, `1` and `010` are labels or names like others.
    """


def _mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    content: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            problem = "a key must be plain text; a value that begins with { or [ needs quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        key = key_node.value
        if key in content:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        content[key] = loader.construct_object(value_node, deep=True)
    return content


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Every problem with its place; of a value that may be of several types only the first one."""
    found: dict[str, str] = {}
    for item in error.errors(include_url=False):
        place = item["loc"]
        message = problem_text(item)
        if item["type"] == "extra_forbidden":
            known = _known_keys(model, place)
            message = f"unknown key (available: {', '.join(known)})" if known else "unknown key"
        elif item["type"] == "string_type" and isinstance(item["input"], list):
            message = "must be text; YAML reads [ as the start of a list: write it in quotes"
        elif item["type"] == "string_type" and isinstance(item["input"], bool | int | float | date):
            message = f"must be text; YAML reads it as {_yaml_type(item['input'])}: write it in quotes"
        by_option = item["ctx"]["problems"] if item["type"] == "option_problems" else {}
        for option, problem in by_option.items():  # options are also given as keys of what they belong to
            found.setdefault(location_text((*place[:-1], option)), problem)
        if not by_option:
            found.setdefault(location_text(place) or "the file", message)
    return [f"At '{place}': {message}" for place, message in found.items()]


def _yaml_type(value: object) -> str:
    if isinstance(value, bool):
        return "true (like yes and on)" if value else "false (like no and off)"
    return "a date" if isinstance(value, date) else "a number"


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are valid at `location`, as far as the JSON schema shows them."""
    schema = _schema(model)
    definitions = schema.get("$defs", {})
    here: dict[str, Any] = schema
    for part in location[:-1]:
        here = here.get("items", {}) if isinstance(part, int) else here.get("properties", {}).get(part, {})
        for choice in [here, *here.get("anyOf", []), *here.get("allOf", [])]:
            if "$ref" in choice:
                here = definitions[choice["$ref"].rsplit("/", 1)[-1]]
                break
    return list(here.get("properties", {}))


def load_config(path: Path, model: type[Model]) -> Model:
    """Read the YAML file at `path` as a `model`.

    Raises:
        ConfigError: with every problem, its path, and what would be valid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), [f"the file cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [f"the file is not UTF-8 text (byte {error.start})"]) from error
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader that also rejects repeated keys
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        line = text.splitlines()[mark.line : mark.line + 1] if mark else []
        advice = "; an IPv6 address is written without brackets, as ::1" if line and re.search(r"\[::", line[0]) else ""
        raise ConfigError(str(path), [f"{place}not valid YAML: {error.problem}{advice}"]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an invalid date, a number that is too long, …
        raise ConfigError(str(path), [f"not valid YAML: {error}"]) from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(str(path), [f"must contain keys and values, not a {type(content).__name__}"])
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError(str(path), _problems(error, model)) from error
