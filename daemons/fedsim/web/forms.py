"""The task form: which settings stand together, what they are called, and what helps to choose them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from fedsim.settings import TaskSettings
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


_CHOICES: dict[str, tuple[tuple[str, Text], ...]] = {
    "partition": (
        ("iid", tr("iid – shuffled, every client alike")),
        ("shards", tr("shards – sorted by label, two shards each: few labels per client")),
        ("dirichlet", tr("dirichlet – label shares drawn with alpha")),
        ("local", tr("local – each node's own file is one client")),
    ),
    "strategy": (
        ("fedavg", tr("FedAvg – weighted mean")),
        ("fedprox", tr("FedProx – mean, clients held near the global model")),
        ("fedavgm", tr("FedAvgM – mean with server momentum")),
        ("median", tr("Median – of each coordinate, withstands outliers")),
    ),
    "weighting": (
        ("examples", tr("by number of examples")),
        ("uniform", tr("the same for each client")),
    ),
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


GROUPS: tuple[Group, ...] = (
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
            _menu("partition", tr("Partition"), tr("How the data is divided among the clients.")),
            _number("alpha", tr("Alpha"), tr("Dirichlet only: small is uneven, large is even.")),
        ),
    ),
    Group(
        tr("Local training"),
        (
            _number("local_epochs", tr("Local epochs"), tr("Passes over its data that a client makes in a round.")),
            _number("local_batch_size", tr("Batch size"), tr("Examples in one step.")),
            _number("local_learning_rate", tr("Learning rate"), tr("Step size of plain SGD.")),
        ),
    ),
    Group(
        tr("Strategy"),
        (
            _menu("strategy", tr("Strategy"), tr("How the clients' updates are combined.")),
            _menu("weighting", tr("Weighting"), tr("How much each client counts.")),
            _number("proximal_mu", tr("Proximal mu"), tr("FedProx only: pull towards the global model.")),
            _number("server_learning_rate", tr("Server learning rate"), tr("FedAvgM only.")),
            _number("server_momentum", tr("Server momentum"), tr("FedAvgM only.")),
        ),
    ),
    Group(
        tr("Rounds"),
        (
            _number("num_rounds", tr("Rounds"), tr("Broadcast, training, aggregation: so many times.")),
            _number("evaluate_every", tr("Test every"), tr("Rounds between two tests on the test set.")),
            _number("save_every", tr("Save every"), tr("Rounds between two checkpoints; the last is always saved.")),
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
                "min_responses", tr("Least responses"), tr("Share of the cohort that must answer before the deadline.")
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
FIELDS = tuple(field for group in GROUPS for field in group.fields)


def filled(settings: TaskSettings) -> dict[str, str]:
    """Settings as the form's texts."""
    return {name: _plain(value) for name, value in settings.model_dump(mode="json").items()}


def given(form: dict[str, str]) -> dict[str, Any]:
    """The form's settings, as typed but for spaces around them; what the form does not have keeps its default."""
    return {field.name: form[field.name].strip() for field in FIELDS if field.name in form}


def kept(form: dict[str, str], prefix: str = "") -> dict[str, str]:
    """What was typed into the task form, to be shown again: known fields only, and of each no more than people type."""
    names = [*(field.name for field in FIELDS), SOURCE, SUBMISSION]
    return {name: form[prefix + name][:MAX_KEPT_CHARACTERS] for name in names if prefix + name in form}


def new_submission() -> str:
    """What makes one form one task, however often it is sent."""
    return secrets.token_urlsafe(16)


def _plain(value: Any) -> str:
    """A number as people type it, 600 and not 600.0, and to its last digit: run again, it is the same number."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
