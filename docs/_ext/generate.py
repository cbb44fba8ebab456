"""Parts of the reference that are generated from the code, as Markdown. Nothing here needs Sphinx."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from inspect import cleandoc
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from kind_tables import message_bodies, message_kinds
from markdown_table import table
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from state_diagrams import TABLES

from fedsim import plugins as plugins_of
from fedsim.cli.main import cli
from fedsim.command import EXIT_CODES
from fedsim.config import ClientConfig, ReceiverConfig, ServerConfig, WebConfig
from fedsim.learning.transforms import compatibility
from fedsim.migrations.command import migrate
from fedsim.owner.main import OWNERS_COMMANDS
from fedsim.seed_settings import SEED_NAMES
from fedsim.settings import TaskSettings
from fedsim.web.api import ApiRoutes
from fedsim_fleet.ca import ca
from fedsim_fleet.fleet.main import fleet
from fedsim_fleet.gather import gather

CONFIGS: dict[str, type[BaseModel]] = {
    "server": ServerConfig,
    "receiver": ReceiverConfig,
    "client": ClientConfig,
    "web": WebConfig,
}
COMMANDS: dict[str, click.Command] = {
    "fedsim": cli,
    "fedsim-client": click.Group("fedsim-client", commands=OWNERS_COMMANDS),
    "fedsim-migrate": migrate,
    "fedsim-fleet": fleet,
    "fedsim-ca": ca,
    "fedsim-gather": gather,
}

DISTRIBUTION = "fedsim-lab"
# What a group's plug-ins are called; groups without an installed plug-in are left out.
GROUPS = {
    "fedsim.models": "Models",
    "fedsim.formats": "Data formats",
    "fedsim.strategies": "Strategies",
    "fedsim.partitions": "Partitions",
    "fedsim.objectives": "Objectives",
    "fedsim.optimizers": "Client optimizers",
    "fedsim.schedules": "Schedules of the learning rate",
    "fedsim.samplers": "Client samplers",
    "fedsim.transforms": "Transforms",
    "fedsim.screenings": "Screenings of updates",
    "fedsim.attacks": "Attacks for research",
    "fedsim.engines": "Engines",
}


def allowed(schema: dict[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(allowed(part) for part in schema["anyOf"] if part.get("type") != "null")
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    start = "" if low is above is None else str(low) if low is not None else f"above {above}"
    if high is below is None:
        kinds = {"string": "text", "boolean": "true, false", "array": "list", "object": "mapping"}
        return f"{start} or more".lstrip() if low is not None else start or kinds.get(schema.get("type", ""), "text")
    end = f"to {high}" if high is not None else f"to below {below}"
    return f"{start} {end}".strip()


def settings() -> str:
    """The settings of a task."""
    original = {ours: theirs for theirs, ours in SEED_NAMES.items()}
    schema = TaskSettings.model_json_schema()["properties"]
    rows = [
        [
            f"`{name}`",
            f"`{field.get_default(call_default_factory=True)}`"
            if field.get_default(call_default_factory=True)
            else "–",
            f"`{original[name]}`" if name in original else "",
            allowed(schema[name]),
            field.description or "",
        ]
        for name, field in TaskSettings.model_fields.items()
    ]
    return table(["setting", "default", "original name", "values", "meaning"], rows)


def _models_in(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The models that an annotation holds, each with what its keys follow: nothing, or `[]` in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
        return
    origin = get_origin(annotation)
    if origin in {Union, UnionType, Annotated}:
        for part in get_args(annotation):
            yield from _models_in(part)
    elif origin is list:
        for part in get_args(annotation):
            yield from (("[]" + inner, model) for inner, model in _models_in(part))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ([], {}) or isinstance(value, BaseModel):
        return "–"
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kind(annotation: Any) -> str:
    """The type of a key, in the words of YAML."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0])
    if origin is Literal:
        return ", ".join(str(part) for part in parts)
    if origin in {Union, UnionType}:
        return " or ".join(_kind(part) for part in parts if part is not NoneType)
    if origin is list:
        return f"list of {_kind(parts[0])}"
    if origin is dict:
        return "mapping"
    names = {bool: "true, false", int: "integer", float: "number", str: "text"}
    if annotation in names:
        return names[annotation]
    name = getattr(annotation, "__name__", "")
    return {"Path": "path", "PosixPath": "path"}.get(name, "network" if "Network" in name else "text")


def _limits(field: FieldInfo) -> str:
    """The bounds of a number, as in `1 to 100`."""
    bounds = {
        name: getattr(part, name)
        for part in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(part, name, None) is not None
    }
    if not bounds:
        return ""
    low = str(bounds["ge"]) if "ge" in bounds else f"above {bounds['gt']}" if "gt" in bounds else ""
    high = f"to {bounds['le']}" if "le" in bounds else f"to below {bounds['lt']}" if "lt" in bounds else "or more"
    return f", {low} {high}" if low else f", {high.removeprefix('to ')} at most"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[list[str]]:
    for name, field in model.model_fields.items():
        inner = list(_models_in(field.annotation))
        if inner:
            yield [
                f"`{prefix}{name}`",
                "mapping" if not inner[0][0] else "list",
                _default(field),
                field.description or "",
            ]
            for marks, below in inner:
                yield from _keys(below, f"{prefix}{name}{marks}.")
        elif name == "format_options":
            values = _kind(field.annotation)
            yield [f"`{prefix}{name}`", values, _default(field), field.description or ""]
            for option, formats in _format_options().items():
                shown = plugins_of.load(plugins_of.FORMATS, formats[0]).Options.model_fields[option]
                yield [
                    f"`{prefix}{option}`",
                    _kind(shown.annotation) + _limits(shown),
                    _default(shown),
                    f"{', '.join(formats)}: {shown.description}",
                ]
        else:
            values = _kind(field.annotation) + _limits(field)
            yield [f"`{prefix}{name}`", values, _default(field), field.description or ""]


def _format_options() -> dict[str, list[str]]:
    """The options of data formats, each with the formats that have it."""
    found: dict[str, list[str]] = {}
    for name in plugins_of.names(plugins_of.FORMATS):
        for option in plugins_of.load(plugins_of.FORMATS, name).Options.model_fields:
            found.setdefault(option, []).append(name)
    return found


def yaml_keys(name: str) -> str:
    """Every key of a daemon's YAML file."""
    return table(["key", "value", "default", "meaning"], list(_keys(CONFIGS[name])))


def exit_codes() -> str:
    """The exit codes of commands and daemons."""
    rows = [[f"`{code}`", meaning] for code, meaning in EXIT_CODES.items()]
    return table(["code", "meaning"], rows)


def _command(path: str, command: click.Command, level: int) -> Iterator[str]:
    yield f"{'#' * level} `{path}`\n"
    yield cleandoc((command.help or "").split("\f")[0].split("\b")[0]) + "\n"
    arguments = [item for item in command.params if isinstance(item, click.Argument)]
    words = " ".join(str(item.make_metavar(click.Context(command))) for item in arguments)
    options = [item for item in command.params if isinstance(item, click.Option) and not item.hidden]
    if not isinstance(command, click.Group):
        yield f"```sh\n{path}{' [OPTIONS]' if options else ''}{f' {words}' if words else ''}\n```\n"
    rows = [
        [
            ", ".join(f"`{name}`" for name in [*item.opts, *item.secondary_opts]),
            (item.help or "").replace("\n", " "),
        ]
        for item in options
    ]
    if rows:
        yield table(["option", "meaning"], rows)
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from _command(f"{path} {name}", below, level + 1)


def commands(name: str) -> str:
    """A command with its subcommands and options."""
    return "\n".join(_command(name, COMMANDS[name], 2))


def api_routes() -> str:
    """The routes of the JSON API."""
    rows = [
        [f"`{route.method}`", f"`/api/v1{route.path.removeprefix('/api/v1')}`", _summary(route.handler)]
        for route in ApiRoutes().routes()
    ]
    return table(["method", "path", "answer"], rows)


def _summary(thing: object) -> str:
    doc = cleandoc(getattr(thing, "__doc__", None) or "").partition("\n\n")[0]
    return " ".join(doc.split())


def _option_rows(options: type[BaseModel]) -> list[list[str]]:
    schema = options.model_json_schema().get("properties", {})
    return [
        [f"`{name}`", _default(field), allowed(schema.get(name, {})), field.description or ""]
        for name, field in options.model_fields.items()
    ]


def _own(group: str) -> list[EntryPoint]:
    found = [point for point in entry_points(group=group) if point.dist is not None and point.dist.name == DISTRIBUTION]
    return sorted(found, key=lambda point: point.name)


def plugins(group: str) -> str:
    """The built-in plug-ins of an entry-point group, with their options."""
    rows, options = [], []
    for point in _own(group):
        plugin = point.load()
        rows.append([f"`{point.name}`", _summary(plugin)])
        model = getattr(plugin, "Options", None)
        if isinstance(model, type) and issubclass(model, BaseModel) and model.model_fields:
            options += [[f"`{point.name}`", *row] for row in _option_rows(model)]
    text = table(["name", "what it is"], rows)
    if options:
        text += "\n" + table(["plug-in", "option", "default", "values", "meaning"], options)
    return text


def all_plugins() -> str:
    """The built-in plug-ins of every group that has some."""
    parts = [f"## {title}\n\nGroup `{group}`.\n\n{plugins(group)}" for group, title in GROUPS.items() if _own(group)]
    return "\n".join(parts)


def combinations() -> str:
    """Which strategies and transforms combine, and why others do not."""
    strategies = {point.name: point.load()() for point in _own("fedsim.strategies")}
    transforms = {point.name: point.load()() for point in _own("fedsim.transforms")}
    found = compatibility(strategies, transforms)
    if not strategies:
        return ""
    rows = [
        [f"`{strategy}`", *(found[strategy, transform] or "yes" for transform in transforms)] for strategy in strategies
    ]
    return table(["strategy", *(f"`{name}`" for name in transforms)], rows)


def transitions(name: str) -> str:
    """The transition table of a state machine; its rows are numbered as in the diagram."""
    rows = [
        [
            str(number),
            f"`{row.source.value}`",
            f"`{row.target.value}`",
            row.label,
            ", ".join(f"`{one}`" for one in row.triggers),
        ]
        for number, row in enumerate(TABLES[name].rows, 1)
    ]
    return table(["", "from", "to", "when", "events"], rows)


# What the directive `generated` can be asked for.
GENERATORS: dict[str, Callable[..., str]] = {
    "settings": settings,
    "yaml-keys": yaml_keys,
    "exit-codes": exit_codes,
    "commands": commands,
    "api-routes": api_routes,
    "plugins": plugins,
    "all-plugins": all_plugins,
    "combinations": combinations,
    "message-kinds": message_kinds,
    "message-bodies": message_bodies,
    "transitions": transitions,
}
