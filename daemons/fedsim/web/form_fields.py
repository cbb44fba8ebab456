"""The fields of the task form: groups of settings with their labels, help texts and choices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from fedsim import plugins
from fedsim.plugin_settings import PLUGIN_LISTS, PLUGIN_SETTINGS, options_setting, plugin_group
from fedsim.settings import TaskSettings
from fedsim.web.i18n import Text, tr

# Settings that name plug-ins, one or several.
CHOICES = PLUGIN_SETTINGS | PLUGIN_LISTS


@dataclass(frozen=True)
class FormField:
    """A setting in the form: a menu if there are `choices`, otherwise an input; `suggest` names a datalist."""

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
    """A group of settings; `advanced` groups are collapsed."""

    title: Text
    fields: tuple[FormField, ...]
    advanced: bool = False


@dataclass(frozen=True)
class OptionGroup:
    """The options of a plug-in, in a field set that is shown while the plug-in is chosen."""

    setting: str
    plugin: str
    title: Text
    fields: tuple[FormField, ...]


_KINDS = (("training", tr("training")), ("statistics", tr("statistics of the data")))
_STATISTICS = (
    ("average", tr("average – like parameters")),
    ("local", tr("local – stay with each client")),
    ("frozen", tr("frozen – as at the start")),
)
_DEVICES = (("auto", tr("auto – a GPU if available")), ("cpu", tr("CPU")), ("cuda", tr("GPU (CUDA)")))

_EVALUATIONS = (("server", tr("the server's test set")), ("nodes", tr("the nodes' own data")), ("both", tr("both")))
_FINAL_MODELS = (("last", tr("of the last round")), ("best", tr("of the best round")))


def _limits(name: str) -> tuple[str, str]:
    """The bounds of a number, from the settings' schema, for validation in the browser."""
    schema = TaskSettings.model_json_schema()["properties"][name]
    return str(schema.get("minimum", "")), str(schema.get("maximum", ""))


def _number(name: str, label: Text, help_text: Text) -> FormField:
    low, high = _limits(name)
    return FormField(name, label, help_text, minimum=low, maximum=high)


def _plugin(name: str, label: Text, help_text: Text, *, none: Text | None = None) -> FormField:
    """A menu of the installed plug-ins, without those that cannot be loaded; `none` names the choice of none."""
    empty = (("", none or tr("the strategy's own")),) if TaskSettings.model_fields[name].default == "" else ()
    usable = (plugin for plugin in plugins.describe(PLUGIN_SETTINGS[name]) if not plugin.problem)
    choices = (*empty, *((plugin.name, _translated(plugin.title)) for plugin in usable))
    return FormField(name, label, help_text, kind="menu", choices=choices)


def _translated(text: str) -> Text:
    """A plug-in's text: translated if the catalogue contains it, otherwise as its package provides it."""
    return tr("%(message)s", message=text) if "%" in text else Text(text, {})


@cache
def option_groups(setting: str) -> tuple[OptionGroup, ...]:
    """The groups of options of all plug-ins that `setting` can name; plug-ins without options have no group."""
    groups = []
    for plugin in plugins.describe(plugin_group(setting)):
        prefix = f"{options_setting(setting)}.{plugin.name}."
        properties = plugin.options.get("properties", {})
        fields = tuple(_option_field(prefix + name, schema) for name, schema in properties.items())
        if fields:
            groups.append(OptionGroup(setting, plugin.name, _translated(plugin.title), fields))
    return tuple(groups)


def _option_field(name: str, schema: dict[str, Any]) -> FormField:
    """A form field from an option's JSON schema."""
    label = _translated(str(schema.get("title", name.rpartition(".")[2])))
    help_text = _translated(str(schema.get("description", "")))
    values = ["true", "false"] if schema.get("type") == "boolean" else schema.get("enum", [])
    if values:
        choices = tuple((str(value), Text(str(value), {})) for value in values)
        return FormField(name, label, help_text, kind="menu", choices=choices)
    kind = "number" if schema.get("type") in {"number", "integer"} else "text"
    low, high = str(schema.get("minimum", "")), str(schema.get("maximum", ""))
    return FormField(name, label, help_text, kind=kind, minimum=low, maximum=high)


@cache
def form_groups() -> tuple[Group, ...]:
    """The form's groups of settings."""
    return (
        Group(
            tr("Model and data"),
            (
                FormField(
                    "kind",
                    tr("Kind"),
                    tr("Train a model, or only gather statistics of the data, without any training."),
                    kind="menu",
                    choices=_KINDS,
                ),
                FormField("title", tr("Title"), tr("A name for the task; optional."), kind="text"),
                FormField(
                    "purpose",
                    tr("Purpose"),
                    tr("What the task is for. Institutions see it, and some require it."),
                    kind="text",
                ),
                _plugin("model", tr("Model"), tr("The model that is trained.")),
                FormField(
                    "statistics",
                    tr("Statistics"),
                    tr("What happens with running means and variances, such as those of BatchNorm."),
                    kind="menu",
                    choices=_STATISTICS,
                ),
                FormField(
                    "initial",
                    tr("Start from"),
                    tr(
                        "Empty: the model's own initialisation. “task 42@20”: the checkpoint of round 20 of task 42; "
                        "without a round, its last. “file NAME”: a file on the server."
                    ),
                    kind="text",
                    suggest="initial-files",
                ),
                FormField(
                    "dataset",
                    tr("Data set"),
                    tr("The name under which nodes offer it."),
                    kind="text",
                    suggest="datasets",
                ),
            ),
        ),
        Group(
            tr("Clients and partition"),
            (
                _number("num_clients", tr("Clients"), tr("The population, distributed over the nodes.")),
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
                _number(
                    "max_steps",
                    tr("Maximum steps"),
                    tr("Most optimizer steps of a client in a round; 0: the epochs decide."),
                ),
                _number("local_batch_size", tr("Batch size"), tr("Examples in one step.")),
                _number("local_learning_rate", tr("Learning rate"), tr("The clients' step size.")),
                _plugin("schedule", tr("Schedule"), tr("How the learning rate changes from round to round.")),
                _plugin("optimizer", tr("Optimizer"), tr("How a client's parameters follow the gradients.")),
                _plugin("objective", tr("Objective"), tr("The loss that clients minimise.")),
            ),
        ),
        Group(
            tr("Strategy"),
            (
                _plugin("strategy", tr("Strategy"), tr("How the clients' updates are combined.")),
                _plugin("aggregation", tr("Aggregation"), tr("Uses the aggregation rule of another strategy.")),
                _plugin("server_step", tr("Server step"), tr("Uses the server step of another strategy.")),
                _plugin(
                    "screening",
                    tr("Screening"),
                    tr("Compares each round's updates with each other, and can leave outliers out."),
                    none=tr("off"),
                ),
                _plugin(
                    "attack",
                    tr("Attack"),
                    tr("For research: some of the clients attack, on nodes whose owners allow it."),
                    none=tr("none"),
                ),
                FormField(
                    "transforms",
                    tr("Transforms"),
                    tr(
                        "What each update passes before it is sent, in order, separated by commas; can be empty. "
                        "Available: %(names)s",
                        names=", ".join(plugins.names(plugins.TRANSFORMS)),
                    ),
                    kind="text",
                ),
            ),
        ),
        Group(
            tr("Rounds"),
            (
                _number("num_rounds", tr("Rounds"), tr("Rounds of broadcast, training and aggregation.")),
                _number("evaluate_every", tr("Test every"), tr("Rounds between two tests on the test set.")),
                _number(
                    "save_every", tr("Save every"), tr("Rounds between two checkpoints; the last is always saved.")
                ),
                FormField(
                    "evaluation",
                    tr("Test on"),
                    tr("Where models are tested: on the server's test set, on data that each node holds out, or both."),
                    kind="menu",
                    choices=_EVALUATIONS,
                ),
                FormField(
                    "stop_when",
                    tr("Stop when"),
                    tr(
                        "Ends the task before its last round, after a test: “accuracy >= 0.97”, “patience 10 loss” (10 "
                        "tests without a better value), “time 3600” (seconds); several with commas. Can be empty."
                    ),
                    kind="text",
                ),
                FormField(
                    "keep_best",
                    tr("Keep the best by"),
                    tr("A metric, such as accuracy: the best tested round stays saved. Can be empty."),
                    kind="text",
                ),
                FormField(
                    "final_model",
                    tr("Final model"),
                    tr("The model that the nodes receive at the end."),
                    kind="menu",
                    choices=_FINAL_MODELS,
                ),
            ),
        ),
        Group(
            tr("Advanced"),
            (
                _number("seed", tr("Seed"), tr("The same seed and placement give the same result, byte for byte.")),
                _number("model_seed", tr("Seed of the model"), tr("Of its initialisation. Empty: the seed.")),
                _number(
                    "partition_seed", tr("Seed of the partition"), tr("Of the division of the data. Empty: the seed.")
                ),
                FormField("device", tr("Device"), tr("Where the nodes train."), kind="menu", choices=_DEVICES),
                _number("num_nodes", tr("Nodes"), tr("Number of nodes that take part; 0: all that can.")),
                FormField(
                    "nodes",
                    tr("Nodes by name"),
                    tr("The nodes that take part, separated by commas; the task waits for all of them. Can be empty."),
                    kind="text",
                ),
                FormField(
                    "testset_from",
                    tr("Test set from"),
                    tr("The node whose test set is used if the server has none. Can be empty."),
                    kind="text",
                ),
                _number(
                    "min_partition_size", tr("Minimum partition size"), tr("Minimum number of examples of a client.")
                ),
                _number(
                    "min_responses",
                    tr("Minimum responses"),
                    tr("Share of the cohort that must respond before the deadline."),
                ),
                _number(
                    "max_missing_share",
                    tr("Missing examples"),
                    tr("A task whose rounds lacked more than this share (0–1) of their examples ends with a warning."),
                ),
                _number(
                    "round_timeout_seconds",
                    tr("Round deadline (seconds)"),
                    tr("After it, the round continues with the clients that responded, if they are enough."),
                ),
            ),
            advanced=True,
        ),
    )


@cache
def form_fields() -> tuple[FormField, ...]:
    """All fields of the form, including the options of all plug-ins."""
    general = tuple(field for group in form_groups() for field in group.fields)
    return general + tuple(field for setting in CHOICES for group in option_groups(setting) for field in group.fields)
