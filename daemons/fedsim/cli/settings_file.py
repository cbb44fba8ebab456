"""Reads settings from a YAML or JSON file and from `--set name=value`. The web validates them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from fedsim.errors import BadInput, NotThere

MAX_FILE_BYTES = 64 * 1024
STDIN = "-"


class _TextLoader(yaml.BaseLoader):
    """Keeps every value as text, so that the web interprets `1e-2` and `2026-01-01`, not YAML."""


def _mapping(loader: _TextLoader, node: yaml.MappingNode) -> dict[str, Any]:
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            problem = "a name must be plain text, not a list or a mapping"
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
    return _unique([(loader.construct_object(key), loader.construct_object(value)) for key, value in node.value])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"the setting {double!r} is given twice; keep one of them")
    return content


_TextLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


class Setting(click.ParamType[tuple[str, str]]):
    """`name=value` on the command line."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Split at the first `=`."""
        name, equals, text = str(value).partition("=")
        if not equals or not name.strip():
            self.fail(f"{value!r} is not NAME=VALUE, such as num_rounds=20", param, ctx)
        return name.strip(), text.strip()


set_option = click.option(
    "--set",
    "overrides",
    type=Setting(),
    multiple=True,
    help="Overrides a setting of the file; can be given multiple times.",
)


def read_settings(source: str) -> dict[str, Any]:
    """Read settings from the YAML or JSON file `source`, or from standard input for `-`.

    Raises:
        NotThere: the file does not exist.
        BadInput: it does not contain names and values.
    """
    shown = "standard input" if source == STDIN else source
    try:
        with sys.stdin.buffer if source == STDIN else Path(source).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise NotThere(f"{source} does not exist: use a YAML or JSON file with a task's settings, or -") from error
    except OSError as error:
        raise BadInput(f"{source} cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise BadInput(f"{shown} has more than {MAX_FILE_BYTES // 1024} KiB: is it a file of settings?")
    try:
        settings = parse_settings_text(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{shown} is not UTF-8 text (byte {error.start})") from error
    except BadInput as error:
        raise BadInput(f"{shown}: {error}") from error
    return settings


def parse_settings_text(text: str) -> dict[str, Any]:
    """Parse names and values from YAML or JSON text; raises `BadInput` with the position of an error."""
    try:
        content = _parse_json(text) if text.lstrip().startswith("{") else _parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise BadInput(f"{place}not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise BadInput(f"not valid YAML: {error}") from error
    except RecursionError as error:
        raise BadInput("it is nested too deeply: settings are names and values") from error
    if content is None or content == "":
        return {}
    if not isinstance(content, dict):
        raise BadInput("must contain names and values, such as `num_rounds: 20`")
    return content


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_TextLoader)  # noqa: S506 - makes only text, lists and mappings


def _parse_json(text: str) -> Any:
    """JSON, or YAML in braces, whose first name has no double quotes."""
    try:
        # A value that JSON does not have (NaN) is kept as text, which the web rejects with the name of its field.
        return json.loads(text, object_pairs_hook=_unique, parse_constant=str)
    except json.JSONDecodeError as error:
        if not text.lstrip().removeprefix("{").lstrip().startswith('"'):
            return _parse_yaml(text)
        raise BadInput(f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from error


def override(settings: dict[str, Any], overrides: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Replace settings, by fedsim's names or those of the original platform."""
    from fedsim.plugin_settings import PLUGIN_LISTS, PLUGIN_SETTINGS, options_setting  # noqa: PLC0415 - pydantic would slow every other command down
    from fedsim.seed_settings import SEED_MODELS, SEED_NAMES  # noqa: PLC0415

    changed = dict(settings)
    for name, value in overrides:
        outer, dot, option = name.partition(".")
        if dot and isinstance(changed.get(outer, {}), dict):
            changed[outer] = {**changed.get(outer, {}), option: value}
            continue
        ours = SEED_NAMES.get(name, name)
        for other in [key for key in changed if SEED_NAMES.get(key, key) == ours]:
            old = changed.pop(other)
            if other == "modelname" and old in SEED_MODELS:  # the original model names include the data set
                changed.setdefault("dataset", SEED_MODELS[old][1])
        if ours in PLUGIN_SETTINGS | PLUGIN_LISTS and settings.get(ours) != value:
            # The options belong to the plug-in that is being replaced.
            given_too = {key for key, _ in overrides}
            kept = changed.pop(options_setting(ours), {})
            names = [option for option in kept if f"{options_setting(ours)}.{option}" in given_too]
            if names:
                changed[options_setting(ours)] = {option: kept[option] for option in names}
        changed[name] = value
    return changed
