"""Plug-ins: what a lab can add to fedsim by installing a package, found by entry points.

A plug-in is a class. It names its settings in a frozen pydantic model `Options` and is made with an instance of it. The
built-in plug-ins are declared in the same way, in `pyproject.toml`. Finding a plug-in never imports torch: a plug-in's
module imports it inside the methods that need it, because the server and the web read its options.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from importlib.abc import MetaPathFinder
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from fedsim import __version__
from fedsim.errors import BadInput
from fedsim.problems import gettext_noop as gettext_noop  # noqa: PLC0414 - plug-ins import it from here
from fedsim.problems import location_text, problem_text

MODELS = "fedsim.models"
FORMATS = "fedsim.formats"
STRATEGIES = "fedsim.strategies"
PARTITIONS = "fedsim.partitions"
OBJECTIVES = "fedsim.objectives"
OPTIMIZERS = "fedsim.optimizers"
SCHEDULES = "fedsim.schedules"
SAMPLERS = "fedsim.samplers"
ENGINES = "fedsim.engines"
TRANSFORMS = "fedsim.transforms"
SCREENINGS = "fedsim.screenings"
ATTACKS = "fedsim.attacks"
GROUPS = (
    MODELS,
    FORMATS,
    STRATEGIES,
    PARTITIONS,
    OBJECTIVES,
    OPTIMIZERS,
    SCHEDULES,
    SAMPLERS,
    ENGINES,
    TRANSFORMS,
    SCREENINGS,
    ATTACKS,
)
"""All groups of entry points."""
_NOT_OF_A_PLUGIN = frozenset({"fedsim", "builtins", "abc", "typing", "pydantic", "torch"})
"""Packages whose classes a plug-in inherits from, but is not known by."""


def short_name(group: str) -> str:
    """The group's name in configurations and messages: "strategies" for `fedsim.strategies`."""
    return group.removeprefix("fedsim.")


def kind_of(group: str) -> str:
    """What a plug-in of the group is called: "strategy" for `fedsim.strategies`."""
    return {STRATEGIES: "strategy"}.get(group, short_name(group).removesuffix("s"))


class PluginOptions(BaseModel):
    """Base of every plug-in's options, and the options of a plug-in without any.

    Each field has a default, a title and a description; the form, `--help`, the API and the documentation show them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _split_text(cls, value: Any, info: ValidationInfo) -> Any:
        """A form and the command line give a list as text, with commas between its items."""
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, str) and get_origin(field.annotation) in {list, tuple}:
            return [item.strip() for item in value.split(",")] if value.strip() else []
        return value


class Plugin:
    """Base of the plug-ins that tasks choose by name.

    Attributes:
        Options: the model of the plug-in's options.
        title: the plug-in in a few words, for menus; the class's name if it is empty.
    """

    Options: ClassVar[type[PluginOptions]] = PluginOptions
    title: ClassVar[str] = ""

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options


class Provenance(BaseModel):
    """Which code a plug-in is: the package that brings it, its version, and a digest of the classes' source files."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    distribution: str
    version: str
    digest: str

    def __str__(self) -> str:
        """The package, its version and the start of the digest."""
        return f"{self.distribution} {self.version} ({self.digest[:8]})"


_installed = cache(entry_points)  # reads the metadata of every installed package, which takes tens of milliseconds


@cache
def _points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in _installed().select(group=group)}


@contextmanager
def registered(group: str, *points: EntryPoint) -> Iterator[None]:
    """Offer plug-ins in this process without an installed package, as tests and notebooks do."""
    found = _points(group)
    before = dict(found)
    found.update({point.name: point for point in points})
    _clear()
    try:
        yield
    finally:
        found.clear()
        found.update(before)
        _clear()


def _clear() -> None:
    for cached in (load, provenance, describe):
        cached.cache_clear()


def names(group: str) -> tuple[str, ...]:
    """The names that installed packages offer in a group, sorted; nothing is imported."""
    return tuple(sorted(_points(group)))


def load_built_in() -> None:
    """Load the plug-ins of fedsim itself, for processes that are forked later."""
    for group in GROUPS:
        for name, point in _points(group).items():
            if point.value.startswith("fedsim."):
                load(group, name)


def unknown(group: str, name: str, known: Iterable[str] | None = None) -> str:
    """The message for a name that no installed package offers."""
    available = ", ".join(sorted(known) if known is not None else names(group)) or "none"
    return f"unknown {kind_of(group)} {name!r} (available: {available})"


class _TorchGuard(MetaPathFinder):
    """Refuses the import of torch in a process that has not imported it yet."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:  # noqa: ARG002
        if fullname == "torch" and "torch" not in sys.modules:
            names = (frame.frame.f_globals.get("__name__", "it") for frame in inspect.stack(context=0))
            importer = next(name for name in names if name != __name__ and not name.startswith("importlib"))
            raise ImportError(
                f"{importer} imports torch while it is itself imported, and daemons do not load torch; import torch "
                "inside the functions that use it"
            )


@contextmanager
def _without_torch() -> Iterator[None]:
    guard = _TorchGuard()
    sys.meta_path.insert(0, guard)
    try:
        yield
    finally:
        sys.meta_path.remove(guard)


@cache
def load(group: str, name: str) -> type[Plugin]:
    """The plug-in's class. Its module is imported without torch, which daemons never load.

    Raises:
        BadInput: no installed package offers it, or its package cannot be imported.
    """
    point = _points(group).get(name)
    if point is None:
        raise BadInput(unknown(group, name))
    try:
        with _without_torch():
            found = point.load()
    except Exception as error:  # a package of the lab's own may raise anything while it is imported
        raise BadInput(
            f"the {kind_of(group)} {name} ({point.value}) cannot be loaded: {error}; repair or uninstall its package"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, Plugin)):
        what = f"the class {found.__name__}" if inspect.isclass(found) else f"a {type(found).__name__}"
        raise BadInput(
            f"the {kind_of(group)} {name} ({point.value}) is {what}; it must be a class that inherits from the base "
            f"class of {short_name(group)}"
        )
    return found


def make(group: str, name: str, options: dict[str, Any]) -> Any:
    """An instance of the plug-in with these options.

    Raises:
        BadInput: there is no such plug-in, or the options are not its own; the message names each one.
    """
    plugin = load(group, name)
    try:
        checked = plugin.Options.model_validate(options)
    except ValidationError as error:
        found = _problems(plugin, name, error)
        problems = "; ".join(f"{option}: {problem}" for option, problem in found.items())
        raise BadInput(f"options of the {kind_of(group)} {name}: {problems}") from error
    return plugin(checked)


def option_problems(group: str, name: str, options: dict[str, Any]) -> dict[str, str]:
    """What is wrong with the options of a plug-in, by their places; raises `BadInput` if it cannot be loaded."""
    plugin = load(group, name)
    try:
        plugin.Options.model_validate(options)
    except ValidationError as error:
        return _problems(plugin, name, error)
    return {}


def _problems(plugin: type[Plugin], name: str, error: ValidationError) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in error.errors(include_url=False):
        found.setdefault(location_text(item["loc"]), option_problem(plugin, name, item))
    return found


def option_problem(plugin: type[Plugin], name: str, item: Any) -> str:
    """What is wrong with an option, from pydantic's error about it; lists the options that there are."""
    if item["type"] == "extra_forbidden":
        fields = plugin.Options.model_fields
        return f"is not an option of {name} (options: {', '.join(fields)})" if fields else f"{name} has no options"
    return problem_text(item)


@cache
def provenance(group: str, name: str) -> Provenance:
    """Which code an installed plug-in is; raises `BadInput` as `load`."""
    digest = source_digest(load(group, name))
    point = _points(group)[name]
    return Provenance(
        distribution=point.dist.name if point.dist else "",
        version=point.dist.version if point.dist else "",
        digest=digest,
    )


def source_digest(plugin: type[Plugin]) -> str:
    """A digest, as hex, of the source of a plug-in's class and of its base classes that are not fedsim's.

    In a package it covers all modules there, because the class uses them. A change of the interface that all plug-ins
    share leaves it as it is. That of a plug-in of fedsim itself includes fedsim's version, for the code around it.
    """
    files = {}
    for name in {part.__module__ for part in inspect.getmro(plugin)}:
        if name != plugin.__module__ and name.split(".")[0] in _NOT_OF_A_PLUGIN:
            continue
        for path in _sources(name):
            files[f"{name} {path.name}"] = path.read_bytes()
    if plugin.__module__.startswith("fedsim."):
        files["fedsim"] = __version__.encode()
    return _digest(files)


def _sources(module_name: str) -> list[Path]:
    """The source file of a module; those of its package if it is in a package of another distribution than fedsim."""
    module = sys.modules[module_name]
    path = Path(getattr(module, "__file__", None) or "")
    if not path.is_file():
        return []
    return sorted(path.parent.glob("*.py")) if module.__package__ and not module_name.startswith("fedsim.") else [path]


def _digest(files: dict[str, bytes]) -> str:
    digest = blake2b(digest_size=16)
    for module_name, source in sorted(files.items()):
        digest.update(f"{module_name} {len(source)}\n".encode())
        digest.update(source)
    return digest.hexdigest()


class Description(BaseModel):
    """A plug-in as catalogues show it. `problem` says why it cannot be used, "" if it can."""

    name: str
    title: str = ""
    description: str = ""
    provenance: Provenance | None = None
    options: dict[str, Any] = {}
    problem: str = ""


@cache
def describe(group: str) -> tuple[Description, ...]:
    """All installed plug-ins of a group; one that cannot be loaded is listed with its problem."""
    return tuple(_describe(group, name) for name in names(group))


def _describe(group: str, name: str) -> Description:
    try:
        plugin = load(group, name)
        return Description(
            name=name,
            title=plugin.title or name,
            description=(inspect.getdoc(plugin) or "").split("\n")[0],
            provenance=provenance(group, name),
            options=plugin.Options.model_json_schema(),
        )
    except BadInput as error:
        return Description(name=name, title=name, problem=str(error))
