"""What there is to choose from: nodes, their data sets, and whether wanted settings fit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.learning.partitions import make_partitioner, most_clients
from fedsim.learning.strategies import make_strategy
from fedsim.messages import DataSetInfo, Hello, read_message
from fedsim.settings import SAVE_PATH_NOTE, SettingsError, TaskSettings, parse_settings
from fedsim.store.records import Node
from fedsim.web.errors import Fault, Problems, explain_settings
from fedsim.web.i18n import Text, tr
from fedsim.web.request import Site


@dataclass(frozen=True)
class NodeView:
    """A node as pages show it; `hello` is None, and `problem` says why, where its announcement cannot be read."""

    name: str
    seen_at: float
    online: bool
    hello: Hello | None
    problem: str = ""


@dataclass(frozen=True)
class DataSetSummary:
    """A data set with the nodes that hold it. `num_train` is the largest that one of its versions has."""

    name: str
    nodes: tuple[str, ...]
    online: bool
    num_train: int
    num_test: int
    feature_shape: tuple[int, ...]
    num_classes: int
    versions: int


@dataclass(frozen=True)
class Catalogue:
    """All nodes that ever announced themselves, and what they hold."""

    nodes: tuple[NodeView, ...]
    datasets: dict[str, DataSetSummary]
    models: tuple[str, ...]


def read_catalogue(site: Site) -> Catalogue:
    """What the nodes announced, as the store has it."""
    now = site.clock()
    timeout = site.config.node_timeout_seconds
    nodes = tuple(_view(node, now - node.seen_at <= timeout) for node in site.store.nodes.all())
    holders: dict[str, list[tuple[NodeView, DataSetInfo]]] = {}
    for node in nodes:
        for info in node.hello.datasets if node.hello else ():
            holders.setdefault(info.name, []).append((node, info))
    return Catalogue(
        nodes, {name: _dataset(name, holders[name]) for name in sorted(holders)}, plugins.names(plugins.MODELS)
    )


def _view(node: Node, online: bool) -> NodeView:
    try:
        hello = read_message(Hello, node.hello, f"the announcement of {node.name}")
    except BadInput as error:
        return NodeView(node.name, node.seen_at, online, None, str(error))
    return NodeView(node.name, node.seen_at, online, hello)


def _dataset(name: str, holders: list[tuple[NodeView, DataSetInfo]]) -> DataSetSummary:
    largest = max((info for _, info in holders), key=lambda info: info.num_train)
    return DataSetSummary(
        name=name,
        nodes=tuple(node.name for node, _ in holders),
        online=any(node.online for node, _ in holders),
        num_train=largest.num_train,
        num_test=largest.num_test,
        feature_shape=largest.feature_shape,
        num_classes=largest.num_classes,
        versions=len({info.digest for _, info in holders}),
    )


def check_settings(given: dict[str, Any], catalogue: Catalogue) -> tuple[TaskSettings, list[Text]]:
    """Check what a person wants, in our names or the original platform's, against its limits and what the nodes hold.

    Returns:
        The settings, and notes for the person.

    Raises:
        Fault: 422 with every problem beside its field.
    """
    problems: Problems = {}
    settings: TaskSettings | None = None
    texts: list[str] = []
    try:
        settings, texts = parse_settings(given)
    except SettingsError as error:
        problems = explain_settings(error)
    if settings is not None:
        try:
            make_strategy(settings)
        except BadInput as error:
            problems["server_step"] = tr("%(message)s", message=str(error))
    model = given.get("model", settings.model if settings else None)
    if isinstance(model, str) and model.isprintable() and "modelname" not in given and model not in catalogue.models:
        problems["model"] = tr(
            "there is no model “%(name)s”; there are %(names)s", name=model, names=", ".join(catalogue.models)
        )
    dataset = settings.dataset if settings else given.get("dataset", TaskSettings.model_fields["dataset"].default)
    if isinstance(dataset, str) and "dataset" not in problems:
        problems |= _check_dataset(dataset, settings, catalogue)
    if problems or settings is None:
        raise Fault(422, tr("The task cannot be submitted like this."), problems=problems)
    return settings, [_note(text) for text in texts] + _waits(settings, catalogue)


def _check_dataset(name: str, settings: TaskSettings | None, catalogue: Catalogue) -> Problems:
    """With no node known, nothing can be said: the task is taken and waits."""
    dataset = catalogue.datasets.get(name)
    if dataset is None:
        if not catalogue.nodes:
            return {}
        if not catalogue.datasets:
            return {"dataset": tr("no node has a data set yet")}
        names = ", ".join(catalogue.datasets)
        return {"dataset": tr("no node has “%(name)s”; there are %(names)s", name=name, names=names)}
    if settings is None or make_partitioner(settings).per_node:
        return {}
    most = most_clients(settings, dataset.num_train)
    if settings.num_clients <= most:
        return {}
    return {
        "num_clients": tr(
            "must be at most %(most)s: more clients cannot share the %(examples)s training examples of %(name)s",
            most=most,
            examples=dataset.num_train,
            name=name,
        )
    }


def _note(text: str) -> Text:
    if text == SAVE_PATH_NOTE:
        return tr("save_path is ignored: the server decides where files lie")
    return tr("%(message)s", message=text)


def _waits(settings: TaskSettings, catalogue: Catalogue) -> list[Text]:
    dataset = catalogue.datasets.get(settings.dataset)
    if dataset is None or not dataset.online:
        return [tr("No node that has %(name)s is online now: the task waits for one.", name=settings.dataset)]
    return []
