"""The task form: which settings stand together, what they are called, and what helps to choose them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cache
from typing import Any

from fedsim import plugins
from fedsim.settings import PLUGIN_SETTINGS, TaskSettings, options_setting
from fedsim.web.i18n import Text, tr

# Hidden fields: the task that the form was filled from, and what makes one form one task.
SOURCE = "from"
SUBMISSION = "submission"
# How the log-in page calls the fields of a task form that it carries along.
KEPT = "kept."
MAX_KEPT_CHARACTERS = 500


@dataclass(frozen=True)
class FormField:
    """One setting in the form. `choices` makes a menu; `suggest` names a list of suggestions; else it is typed."""

    name: str
    label: Text
    help: Text
    kind: str = "number"
    choices: tuple[tuple[str, Text], ...] = ()
    suggest: str = ""
    minimum: str = ""
    maximum: str = ""


@dataclass(frozen=True)
class Group:
    """Settings that belong together; `advanced` ones are folded away."""

    title: Text
    fields: tuple[FormField, ...]
    advanced: bool = False


@dataclass(frozen=True)
class OptionGroup:
    """The options of one plug-in, in a field set that is shown where the plug-in is chosen."""

    setting: str
    plugin: str
    title: Text
    fields: tuple[FormField, ...]


_CHOICES: dict[str, tuple[tuple[str, Text], ...]] = {
    "device": (
        ("auto", tr("auto – a GPU where there is one")),
        ("cpu", tr("CPU")),
        ("cuda", tr("GPU (CUDA)")),
    ),
}


def _limits(name: str) -> tuple[str, str]:
    """The bounds of a number, from the settings' schema, for the browser's own check."""
    schema = TaskSettings.model_json_schema()["properties"][name]
    return str(schema.get("minimum", "")), str(schema.get("maximum", ""))


def _number(name: str, label: Text, explained: Text) -> FormField:
    low, high = _limits(name)
    return FormField(name, label, explained, minimum=low, maximum=high)


def _menu(name: str, label: Text, explained: Text) -> FormField:
    return FormField(name, label, explained, kind="menu", choices=_CHOICES[name])


def _plugin(name: str, label: Text, explained: Text) -> FormField:
    """A menu of the installed plug-ins; one that cannot be loaded is left out."""
    empty = (("", tr("the strategy's own")),) if TaskSettings.model_fields[name].default == "" else ()
    usable = (plugin for plugin in plugins.describe(PLUGIN_SETTINGS[name]) if not plugin.problem)
    choices = (*empty, *((plugin.name, _translated(plugin.title)) for plugin in usable))
    return FormField(name, label, explained, kind="menu", choices=choices)


def _translated(text: str) -> Text:
    """A plug-in's own text: translated where the catalogue has it, else shown as its package gives it."""
    return tr("%(message)s", message=text) if "%" in text else Text(text, {})


@cache
def option_groups(setting: str) -> tuple[OptionGroup, ...]:
    """The options of every plug-in that `setting` can name; plug-ins without options have none."""
    groups = []
    for plugin in plugins.describe(PLUGIN_SETTINGS[setting]):
        prefix = f"{options_setting(setting)}.{plugin.name}."
        properties = plugin.options.get("properties", {})
        fields = tuple(_option_field(prefix + name, schema) for name, schema in properties.items())
        if fields:
            groups.append(OptionGroup(setting, plugin.name, _translated(plugin.title), fields))
    return tuple(groups)


def _option_field(name: str, schema: dict[str, Any]) -> FormField:
    """A form field from an option's JSON schema."""
    label = _translated(str(schema.get("title", name.rpartition(".")[2])))
    explained = _translated(str(schema.get("description", "")))
    values = ["true", "false"] if schema.get("type") == "boolean" else schema.get("enum", [])
    if values:
        choices = tuple((str(value), Text(str(value), {})) for value in values)
        return FormField(name, label, explained, kind="menu", choices=choices)
    kind = "number" if schema.get("type") in {"number", "integer"} else "text"
    low, high = str(schema.get("minimum", "")), str(schema.get("maximum", ""))
    return FormField(name, label, explained, kind=kind, minimum=low, maximum=high)


@cache
def form_groups() -> tuple[Group, ...]:
    """The form's groups of settings."""
    return (
        Group(
            tr("Model and data"),
            (
                FormField("title", tr("Title"), tr("A name of your own for the task; may be empty."), kind="text"),
                FormField("model", tr("Model"), tr("The model that is trained."), kind="text", suggest="models"),
                FormField(
                    "dataset",
                    tr("Data set"),
                    tr("By the name that the nodes give it."),
                    kind="text",
                    suggest="datasets",
                ),
            ),
        ),
        Group(
            tr("Clients and partition"),
            (
                _number("num_clients", tr("Clients"), tr("The population, spread over the nodes.")),
                _number(
                    "fraction_train", tr("Fraction per round"), tr("Share of the clients in each round's cohort (0–1).")
                ),
                _plugin("partition", tr("Partition"), tr("How the data is divided among the clients.")),
                _plugin("sampler", tr("Sampler"), tr("How each round's cohort is drawn.")),
            ),
        ),
        Group(
            tr("Local training"),
            (
                _number("local_epochs", tr("Local epochs"), tr("Passes over its data that a client makes in a round.")),
                _number("local_batch_size", tr("Batch size"), tr("Examples in one step.")),
                _number("local_learning_rate", tr("Learning rate"), tr("The clients' step size.")),
                _plugin("optimizer", tr("Optimizer"), tr("How a client's parameters follow the gradients.")),
                _plugin("objective", tr("Objective"), tr("The loss that clients minimise.")),
            ),
        ),
        Group(
            tr("Strategy"),
            (
                _plugin("strategy", tr("Strategy"), tr("How the clients' updates are combined.")),
                _plugin("aggregation", tr("Aggregation"), tr("A strategy whose rule combines the updates instead.")),
                _plugin("server_step", tr("Server step"), tr("A strategy whose server step is taken instead.")),
            ),
        ),
        Group(
            tr("Rounds"),
            (
                _number("num_rounds", tr("Rounds"), tr("Broadcast, training, aggregation: so many times.")),
                _number("evaluate_every", tr("Test every"), tr("Rounds between two tests on the test set.")),
                _number(
                    "save_every", tr("Save every"), tr("Rounds between two checkpoints; the last is always saved.")
                ),
            ),
        ),
        Group(
            tr("Advanced"),
            (
                _number("seed", tr("Seed"), tr("Same seed, same placement: the same result, to the byte.")),
                _menu("device", tr("Device"), tr("Where the nodes train.")),
                _number("num_nodes", tr("Nodes"), tr("How many nodes take part; 0: all that can.")),
                _number("min_partition_size", tr("Least partition"), tr("Least number of examples of a client.")),
                _number(
                    "min_responses",
                    tr("Least responses"),
                    tr("Share of the cohort that must answer before the deadline."),
                ),
                _number(
                    "round_timeout_seconds",
                    tr("Round deadline (seconds)"),
                    tr("Then the round goes on with those who answered, if they are enough."),
                ),
            ),
            advanced=True,
        ),
    )


@cache
def form_fields() -> tuple[FormField, ...]:
    """All fields of the form, the options of all plug-ins included."""
    general = tuple(field for group in form_groups() for field in group.fields)
    return general + tuple(
        field for setting in PLUGIN_SETTINGS for group in option_groups(setting) for field in group.fields
    )


def filled(settings: TaskSettings) -> dict[str, str]:
    """Settings as the form's texts; options of plug-ins that are not chosen have their defaults."""
    values = settings.model_dump(mode="json")
    texts = {name: _plain(value) for name, value in values.items() if not isinstance(value, dict)}
    for setting, group in PLUGIN_SETTINGS.items():
        for plugin in plugins.describe(group):
            chosen = settings.options(setting) if values[setting] == plugin.name else {}
            for option, schema in plugin.options.get("properties", {}).items():
                value = chosen.get(option, schema.get("default", ""))
                texts[f"{options_setting(setting)}.{plugin.name}.{option}"] = _plain(value)
    return texts


def shown(settings: TaskSettings) -> list[tuple[Text, str]]:
    """The settings as (label, value), with the options of the chosen plug-ins only."""
    texts = filled(settings)
    rows = []
    for group in form_groups():
        for field in group.fields:
            if field.name == "title":
                continue
            choice = texts[field.name]
            if choice or field.name not in PLUGIN_SETTINGS:
                rows.append((field.label, choice))
            if field.name in PLUGIN_SETTINGS:
                rows += [
                    (option.label, texts[option.name])
                    for options in option_groups(field.name)
                    if options.plugin == choice
                    for option in options.fields
                ]
    return rows


def given(form: dict[str, str]) -> dict[str, Any]:
    """The form's settings, as typed but for spaces around them; what the form does not have keeps its default.

    Of the options, those of the chosen plug-ins count.
    """
    settings: dict[str, Any] = {}
    for group in form_groups():
        for field in group.fields:
            if field.name not in form:
                continue
            settings[field.name] = form[field.name].strip()
    for setting in PLUGIN_SETTINGS:
        chosen = settings.get(setting, TaskSettings.model_fields[setting].default)
        prefix = f"{options_setting(setting)}.{chosen}."
        typed = {
            field.name.removeprefix(prefix): form[field.name].strip()
            for options in option_groups(setting)
            if options.plugin == chosen
            for field in options.fields
            if field.name in form
        }
        if typed:
            settings[options_setting(setting)] = typed
    return settings


def field_of_problem(name: str, values: dict[str, str]) -> str:
    """The form's field of a problem: that of `strategy_options.mu` is `strategy_options.fedprox.mu`."""
    outer, dot, option = name.partition(".")
    setting = outer.removesuffix("_options")
    if not dot or setting not in PLUGIN_SETTINGS:
        return name
    return f"{outer}.{values.get(setting, '').strip()}.{option}"


def kept(form: dict[str, str], prefix: str = "") -> dict[str, str]:
    """What was typed into the task form, to be shown again: known fields only, and of each no more than people type."""
    names = [*(field.name for field in form_fields()), SOURCE, SUBMISSION]
    return {name: form[prefix + name][:MAX_KEPT_CHARACTERS] for name in names if prefix + name in form}


def new_submission() -> str:
    """What makes one form one task, however often it is sent."""
    return secrets.token_urlsafe(16)


def _plain(value: Any) -> str:
    """A number as people type it, 600 and not 600.0, and to its last digit: run again, it is the same number."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
