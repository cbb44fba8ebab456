"""The catalogue of nodes and their data sets, and the check of submitted settings against it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from fedsim.data_schema import Targets
from fedsim.durations import DAY_SECONDS
from fedsim.errors import BadInput
from fedsim.learning.attacks import check_attack, make_attack
from fedsim.learning.buffering_checks import check_buffering, is_asynchronous
from fedsim.learning.models import wrong_targets
from fedsim.learning.objectives import make_objective
from fedsim.learning.partitions import make_partitioner, most_clients
from fedsim.learning.partitions.natural import clients_of_size
from fedsim.learning.samplers import check_sampler, make_sampler
from fedsim.learning.screenings import make_screening
from fedsim.learning.strategies import check_cohort, make_strategy
from fedsim.learning.transforms import make_pipeline
from fedsim.messages import DataSetInfo, Hello
from fedsim.seed_settings import SAVE_PATH_NOTE
from fedsim.settings import SettingsError, TaskSettings, parse_settings
from fedsim.web.announcements import NodeView
from fedsim.web.errors import Fault, Problems, explain_settings
from fedsim.web.i18n import Text, tr
from fedsim.web.request import Site


@dataclass(frozen=True)
class DataSetSummary:
    """A data set with the nodes that have it. If versions differ, the numbers are those of the largest.

    `guarded`: a node guards it; `open`: on a node it is open. `natural_clients`: how many clients all versions together
    name with at least 1, 2, 4, 8 … examples.
    """

    name: str
    nodes: tuple[str, ...]
    online: bool
    num_train: int
    num_test: int
    feature_shape: tuple[int, ...]
    num_classes: int
    versions: int
    guarded: bool = False
    open: bool = True
    targets: Targets = "classes"
    natural_clients: tuple[int, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """All nodes that ever announced themselves, their data sets, and the models."""

    nodes: tuple[NodeView, ...]
    datasets: dict[str, DataSetSummary]


def read_catalogue(site: Site) -> Catalogue:
    """Read the catalogue from the store."""
    now = site.clock()
    timeout = site.config.node_timeout_seconds
    nodes = tuple(
        replace(
            node,
            online=now - node.seen_at <= timeout,
            certificate_days=_days(node.hello, now),
        )
        for node in site.announcements.read(site.store)
    )
    holders: dict[str, list[tuple[NodeView, DataSetInfo]]] = {}
    for node in nodes:
        for info in node.hello.datasets if node.hello else ():
            holders.setdefault(info.name, []).append((node, info))
    return Catalogue(nodes, {name: _dataset(name, holders[name]) for name in sorted(holders)})


def _days(hello: Hello | None, now: float) -> int | None:
    """How long the node's certificate is still valid."""
    if hello is None or hello.certificate_expires_at is None:
        return None
    return int((hello.certificate_expires_at - now) // DAY_SECONDS)


def _dataset(name: str, holders: list[tuple[NodeView, DataSetInfo]]) -> DataSetSummary:
    largest = max((info for _, info in holders), key=lambda info: info.num_train)
    natural = {info.digest: info.natural_clients for _, info in holders}.values()
    return DataSetSummary(
        name=name,
        nodes=tuple(node.name for node, _ in holders),
        online=any(node.online for node, _ in holders),
        num_train=largest.num_train,
        num_test=largest.num_test,
        feature_shape=largest.feature_shape,
        num_classes=largest.num_classes,
        versions=len({info.digest for _, info in holders}),
        guarded=any(info.guard is not None for _, info in holders),
        open=any(info.guard is None for _, info in holders),
        targets="classes" if largest.data_schema is None else largest.data_schema.targets,
        natural_clients=tuple(map(sum, zip_longest(*natural, fillvalue=0))),
    )


def check_settings(submitted: dict[str, Any], catalogue: Catalogue) -> tuple[TaskSettings, list[Text]]:
    """Check submitted settings, by their names here or those of the original platform, against limits and catalogue.

    Returns:
        The settings, and notes for the user.

    Raises:
        Fault: 422 with every problem by its field.
    """
    problems: Problems = {}
    settings: TaskSettings | None = None
    texts: list[str] = []
    try:
        settings, texts = parse_settings(submitted)
    except SettingsError as error:
        problems = explain_settings(error)
    if settings is not None and settings.trains:
        field = "server_step" if settings.server_step else "strategy"
        try:
            strategy = make_strategy(settings)
            field = "aggregation" if settings.aggregation else "strategy"
            # With a client for each node, the nodes that take part decide how many clients there are.
            if not make_partitioner(settings).per_node:
                check_cohort(strategy, settings)
                field = "sampler"
                check_sampler(make_sampler(settings), settings)
            field = "transforms"
            make_pipeline(settings, strategy)
            field = "model"
            if problem := wrong_targets(settings.model, settings.plugin("model"), make_objective(settings).targets):
                problems[field] = tr("%(message)s", message=problem)
            field = "attack"
            check_attack(make_attack(settings), settings, strategy, make_partitioner(settings))
            field = "strategy"
            sampler, screening = make_sampler(settings), make_screening(settings)
            check_buffering(strategy, settings, sampler, screening, make_attack(settings))
        except BadInput as error:
            problems[field] = tr("%(message)s", message=str(error))
    default = TaskSettings.model_fields["dataset"].default
    dataset = settings.dataset if settings else submitted.get("dataset", default)
    if isinstance(dataset, str) and "dataset" not in problems:
        problems |= _check_dataset(dataset, settings, catalogue)
    if problems or settings is None:
        raise Fault(422, tr("The task cannot be submitted: some settings are invalid."), problems=problems)
    return settings, [_note(text) for text in texts] + _waits(settings, catalogue)


def _check_dataset(name: str, settings: TaskSettings | None, catalogue: Catalogue) -> Problems:
    """Check the data set. While no node is known, any data set is accepted, and the task waits.

    How many clients guarded data allows depends on the nodes that take part, which the plan chooses.
    """
    dataset = catalogue.datasets.get(name)
    if dataset is None:
        if not catalogue.nodes:
            return {}
        if not catalogue.datasets:
            return {"dataset": tr("no node has a data set yet")}
        names = ", ".join(catalogue.datasets)
        return {"dataset": tr("no node has the data set “%(name)s” (available: %(names)s)", name=name, names=names)}
    if settings is not None and not settings.trains:
        return {}
    if settings is not None and settings.attack and not dataset.open:
        return {"attack": tr("no attack may use guarded data: choose an open data set")}
    if settings is not None and not dataset.open and make_partitioner(settings).changes_features:
        return {"partition": tr("this partition changes features, which guarded data does not allow")}
    if settings is not None and not dataset.open and is_asynchronous(settings):
        return {"strategy": tr("asynchronous rounds do not work with guarded data: choose an open data set")}
    if settings is not None:
        fits = dataset.targets, dataset.feature_shape, dataset.num_classes
        if problem := make_objective(settings).problem(*fits):
            return {"objective": tr("%(message)s", message=f"the data set {name} {problem}")}
    if settings is not None and make_partitioner(settings).natural:
        return _check_natural(settings, dataset)
    if settings is None or dataset.guarded or make_partitioner(settings).per_node:
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


def _check_natural(settings: TaskSettings, dataset: DataSetSummary) -> Problems:
    """Check a task whose clients are those that the data names."""
    if not dataset.open:
        return {"partition": tr("guarded data is divided into blocks, which are not its clients': choose open data")}
    if not dataset.natural_clients:
        problem = tr("the data set %(name)s does not say to which client an example belongs", name=dataset.name)
        return {"partition": problem}
    most = clients_of_size(dataset.natural_clients, settings.min_partition_size)
    if settings.num_clients <= most:
        return {}
    return {
        "num_clients": tr(
            "must be at most %(most)s: %(name)s names no more clients with at least %(least)s examples",
            most=most,
            name=dataset.name,
            least=settings.min_partition_size,
        )
    }


def _note(text: str) -> Text:
    if text == SAVE_PATH_NOTE:
        return tr("save_path is ignored: the server decides where files are stored")
    return tr("%(message)s", message=text)


def _waits(settings: TaskSettings, catalogue: Catalogue) -> list[Text]:
    dataset = catalogue.datasets.get(settings.dataset)
    if dataset is None or not dataset.online:
        return [tr("No node with the data set %(name)s is online: the task waits for one.", name=settings.dataset)]
    return []
