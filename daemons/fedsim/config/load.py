"""Loads a YAML file into a validated, frozen model, and reports all errors at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fedsim.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Rejects a repeated key. Plain YAML would silently use the last one."""


def _mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            problem = "a key must be plain text; a value that begins with { or [ needs quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _path_of(location: tuple[int | str, ...]) -> str:
    """('nodes', 0, 'port') -> 'nodes[0].port'."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "the file"


def _problem(item: Any, model: type[BaseModel]) -> str:
    where = _path_of(item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = _known_keys(model, item["loc"])
        message = f"unknown key (available: {', '.join(known)})" if known else "unknown key"
    elif item["type"] == "missing":
        message = "is missing"
    return f"At '{where}': {message}"


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are valid at `location`, as far as the JSON schema shows them."""
    schema = model.model_json_schema()
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
        raise ConfigError(str(path), [f"{place}not valid YAML: {error.problem}"]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an invalid date, a number that is too long, …
        raise ConfigError(str(path), [f"not valid YAML: {error}"]) from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(str(path), [f"must contain keys and values, not a {type(content).__name__}"])
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [_problem(item, model) for item in error.errors(include_url=False)]
        raise ConfigError(str(path), problems) from error
