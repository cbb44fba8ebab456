"""Plug-ins: what a lab can add to fedsim by installing a package, found by entry points.

A plug-in is a class. It names its settings in a frozen pydantic model `Options` and is made with an instance of it. The
built-in plug-ins are declared in the same way, in `pyproject.toml`. Finding a plug-in never imports torch: a plug-in's
module imports it inside the methods that need it, because the server and the web read its options.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from fedsim import __version__
from fedsim.errors import BadInput

MODELS = "fedsim.models"
FORMATS = "fedsim.formats"
STRATEGIES = "fedsim.strategies"
PARTITIONS = "fedsim.partitions"
OBJECTIVES = "fedsim.objectives"
OPTIMIZERS = "fedsim.optimizers"
SAMPLERS = "fedsim.samplers"
ENGINES = "fedsim.engines"
GROUPS = (MODELS, FORMATS, STRATEGIES, PARTITIONS, OBJECTIVES, OPTIMIZERS, SAMPLERS, ENGINES)
"""All groups of entry points."""
WORKERS_ONLY = frozenset({MODELS, ENGINES})
"""Groups whose packages import torch: only workers load them, others know their names."""

_NOT_OF_A_PLUGIN = frozenset({"fedsim", "builtins", "abc", "typing", "pydantic", "torch"})
"""Packages whose classes a plug-in inherits from, but is not known by."""


def gettext_noop(text: str) -> str:
    """Mark a text for translation: pages look its translation up when they show it."""
    return text


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


@cache
def _points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


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


def unknown(group: str, name: str, known: Iterable[str] | None = None) -> str:
    """The message for a name that no installed package offers."""
    available = ", ".join(sorted(known) if known is not None else names(group)) or "none"
    return f"unknown {kind_of(group)} {name!r} (available: {available})"


@cache
def load(group: str, name: str) -> Any:
    """The plug-in's class (a data format's or model's may be any callable).

    Raises:
        BadInput: no installed package offers it, or its package cannot be imported.
    """
    point = _points(group).get(name)
    if point is None:
        raise BadInput(unknown(group, name))
    try:
        found = point.load()
    except Exception as error:  # a package of the lab's own may raise anything while it is imported
        raise BadInput(
            f"the {kind_of(group)} {name} ({point.value}) cannot be loaded: {error}; repair or uninstall its package"
        ) from error
    if not callable(found):
        raise BadInput(f"the {kind_of(group)} {name} ({point.value}) is a {type(found).__name__}; it must be a class")
    return found


def options_model(plugin: Any) -> type[PluginOptions]:
    """The model of a plug-in's options; that without fields where it declares none."""
    return cast("type[PluginOptions]", getattr(plugin, "Options", PluginOptions))


def make(group: str, name: str, options: dict[str, Any]) -> Any:
    """An instance of the plug-in with these options.

    Raises:
        BadInput: there is no such plug-in, or the options are not its own; the message names each one.
    """
    plugin: Any = load(group, name)
    try:
        checked = options_model(plugin).model_validate(options)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {option_problem(plugin, name, item)}"
            for item in error.errors(include_url=False)
        )
        raise BadInput(f"options of the {kind_of(group)} {name}: {problems}") from error
    return plugin(checked) if issubclass(plugin, Plugin) else plugin()


def option_problem(plugin: Any, name: str, item: Any) -> str:
    """What is wrong with an option, from pydantic's error about it; lists the options that there are."""
    if item["type"] == "extra_forbidden":
        fields = options_model(plugin).model_fields
        return f"is not an option of {name} (options: {', '.join(fields)})" if fields else f"{name} has no options"
    return str(item["msg"]).removeprefix("Value error, ")


@cache
def provenance(group: str, name: str) -> Provenance:
    """Which code an installed plug-in is; raises `BadInput` as `load`.

    What only workers load is not imported: its digest is that of the one file that the entry point names.
    """
    digest = _file_digest(group, name) if group in WORKERS_ONLY else source_digest(load(group, name))
    point = _points(group)[name]
    return Provenance(
        distribution=point.dist.name if point.dist else "",
        version=point.dist.version if point.dist else "",
        digest=digest,
    )


def _file_digest(group: str, name: str) -> str:
    """The digest of the file of a plug-in's module, found without importing the module or the packages around it."""
    point = _points(group).get(name)
    if point is None:
        raise BadInput(unknown(group, name))
    file = _file_of(point.module)
    if file is None:
        raise BadInput(
            f"the {kind_of(group)} {name} ({point.value}) cannot be loaded: No module named {point.module!r}; "
            "repair or uninstall its package"
        )
    own = {"fedsim": __version__.encode()} if point.module.startswith("fedsim.") else {}
    return _digest({point.module: file.read_bytes()} | own)


def _file_of(module: str) -> Path | None:
    """The source file of a module; `find_spec` alone would import the packages around it."""
    package, *rest = module.split(".")
    try:
        spec = find_spec(package)
    except ValueError:  # a module that something other than Python's import put in place
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        package = f"{package}.{part}"
        spec = PathFinder.find_spec(package, spec.submodule_search_locations)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin)


def source_digest(plugin: Any) -> str:
    """A digest, as hex, of the source files of a plug-in's class and of its base classes that are not fedsim's.

    A change of the interface that all plug-ins share leaves it as it is. That of a plug-in of fedsim itself includes
    fedsim's version, for the code around it.
    """
    classes = inspect.getmro(plugin) if inspect.isclass(plugin) else (plugin,)
    modules = {part.__module__: inspect.getmodule(part) for part in classes}
    files = {
        name: Path(file).read_bytes()
        for name, module in modules.items()
        if (file := getattr(module, "__file__", None))
        and (name == plugin.__module__ or name.split(".")[0] not in _NOT_OF_A_PLUGIN)
        and Path(file).is_file()
    }
    if plugin.__module__.startswith("fedsim."):
        files["fedsim"] = __version__.encode()
    return _digest(files)


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
        if group in WORKERS_ONLY:
            return Description(name=name, title=name, provenance=provenance(group, name))
        plugin = load(group, name)
        return Description(
            name=name,
            title=getattr(plugin, "title", "") or name,
            description=(inspect.getdoc(plugin) or "").split("\n")[0],
            provenance=provenance(group, name),
            options=options_model(plugin).model_json_schema(),
        )
    except BadInput as error:
        return Description(name=name, title=name, problem=str(error))
