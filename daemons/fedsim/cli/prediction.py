"""The implementation of `fedsim predict`: loads a checkpoint and examples, and tests the model on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fedsim import plugins
from fedsim.cli.output import number, share
from fedsim.config import ClientConfig, DataSetConfig, load_config
from fedsim.data import DataSet, load_dataset, load_features
from fedsim.data.formats import find_format
from fedsim.data.load import find_path
from fedsim.data.npz import PIXEL_SCALE, TEST_LABELS, TRAIN_LABELS, read_features, read_npz
from fedsim.data.table import Csv, Table, is_table
from fedsim.data_schema import NAMED_TARGETS, DataSchema, Targets, unknown_words
from fedsim.errors import BadInput
from fedsim.learning.common_scale import apply_scale, scale_of
from fedsim.learning.evaluate import Evaluation, evaluate
from fedsim.learning.examples import Examples, FloatArray, IntArray
from fedsim.learning.metrics import ClassValue, Metric, MetricFormat
from fedsim.learning.objectives import Objective
from fedsim.messages import ModelSpec
from fedsim.worker.checkpoint import TaskOfCheckpoint, load_checkpoint, task_of

OBJECTIVES: dict[Targets, str] = {
    "classes": "classification",
    "tokens": "next_token",
    "mask": "segmentation",
    "numbers": "regression",
    "flags": "multilabel",
}
"""The objective whose metrics are computed where that of the task is not known."""


@dataclass(frozen=True)
class PredictionSource:
    """The location and format of examples, from the command line."""

    path: Path
    dataset_format: str | None = None
    label_columns: tuple[str, ...] = ()
    part: str | None = None
    like: str | None = None
    config: Path = Path("/etc/fedsim/client.yml")


@dataclass(frozen=True)
class PredictionInput:
    """Examples to predict: features [n, *shape] with their scale, labels int64 [n] if there are any.

    `source` describes their origin.
    """

    features: Examples
    labelled: bool
    source: str


@dataclass(frozen=True)
class CheckpointModel:
    """The model of a checkpoint, its specification and objective, and the task's columns and labels if recorded."""

    path: Path
    module: nn.Module
    spec: ModelSpec
    objective: Objective
    data_schema: DataSchema | None = None

    @property
    def targets(self) -> Targets:
        """What it predicts."""
        return self.objective.targets

    def evaluate(self, given: PredictionInput) -> Evaluation | None:
        """The metrics of the model on the examples; None without labels."""
        return evaluate(self.module, given.features, objective=self.objective) if given.labelled else None

    def describe(self, evaluation: Evaluation) -> Iterator[str]:
        """Describe an evaluation: a line for the metrics, and a line for each per-class metric."""
        metrics = self.objective.metrics.in_order(evaluation.metrics)
        yield ", ".join(f"{metric.name} {_written(metric, evaluation.metrics[metric.name])}" for metric in metrics)
        for metric in self.objective.metrics.in_order(evaluation.class_metrics):
            values = enumerate(evaluation.class_metrics[metric.name])
            yield f"{metric.name} " + ", ".join(f"class {i}: {_written(metric, value)}" for i, value in values)


def as_json_values(evaluation: Evaluation | None) -> dict[str, Any]:
    """An evaluation for `--json`."""
    if evaluation is None:
        return {"metrics": None, "class_metrics": None}
    return {"metrics": evaluation.metrics, "class_metrics": evaluation.class_metrics}


def _written(metric: Metric, value: ClassValue) -> str:
    if isinstance(value, tuple):
        return " ".join(_written(metric, one) for one in value)
    return share(value) if metric.format is MetricFormat.SHARE else number(value)


def open_model(path: Path) -> CheckpointModel:
    """Load the model of a checkpoint; raises `BadInput` if it is invalid, or its objective is not installed."""
    task = task_of(path)
    return CheckpointModel(path, *load_checkpoint(path), _objective(task), task.data_schema)


def _objective(task: TaskOfCheckpoint) -> Objective:
    targets = "classes" if task.data_schema is None else task.data_schema.targets
    name = task.objective or OBJECTIVES[targets]
    objective: Objective = plugins.make("fedsim.objectives", name, task.objective_options)
    return objective


def load_examples(source: PredictionSource, model: CheckpointModel) -> PredictionInput:
    """Read the examples, and check that they match the model.

    Raises:
        BadInput: they cannot be read, or have another shape or other classes than the model was trained for.
    """
    path = source.path
    table = is_table(source.dataset_format, path)
    if source.like is not None and not table:
        raise BadInput(f"{path} is not a table: omit --like, which scales the columns of a table")
    if source.label_columns and not table:
        raise BadInput(f"{path} is not a table: omit --label-column")
    try:
        if source.like is not None:
            given = _table_like(source, model)
        elif table and not source.label_columns:
            names, columns = _read_columns(path)
            given = _in_order(_unlabelled(columns, "the table"), names, model)
        elif path.suffix.lower() == ".npy" or (path.suffix.lower() == ".npz" and not _has_labels(path)):
            given = _unlabelled(read_features(path), "the array", tokens=model.targets == "tokens")
        else:
            given = _of_data_set(source, model)
    except OSError as error:
        raise BadInput(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    shape = given.features.feature_shape
    if shape != model.spec.feature_shape:
        raise BadInput(
            f"The examples of {path} have the shape {list(shape)}, but {model.path} was trained for "
            f"{list(model.spec.feature_shape)}: use the data or the checkpoint that matches the other"
        )
    if given.labelled:
        _check_labels(given.features, source, model)
    return given


def _check_labels(examples: Examples, source: PredictionSource, model: CheckpointModel) -> None:
    labels, expected = examples.labels, model.spec.num_classes
    if model.targets in NAMED_TARGETS:
        if labels.shape[1:] != (expected,):
            raise BadInput(f"{source.path} has {labels.shape[1]} {model.targets}, but {model.path} predicts {expected}")
    elif (highest := int(labels.max(initial=0))) >= expected:
        raise BadInput(f"{source.path} has the class {highest}, but {model.path} knows the classes 0 to {expected - 1}")


def _of_data_set(source: PredictionSource, model: CheckpointModel) -> PredictionInput:
    """Read labelled data in one of the formats of `fedsim.data`."""
    path = source.path.absolute()
    place = {"name": "given", "path": path.name, "format": source.dataset_format}
    reader = find_format(DataSetConfig.model_validate(place), path)
    options = {name: value for name, value in _of_task(model).items() if name in type(reader).Options.model_fields}
    config = DataSetConfig.model_validate(place | _labels_in(source, model) | options)
    dataset = _with_task_labels(load_dataset(config, path.parent), model)
    if source.part == "test" and dataset.test is None:
        raise BadInput(f"{source.path} has no test set: omit --part")
    test = dataset.test if source.part != "train" else None
    names = dataset.data_schema.features if dataset.data_schema is not None else ()
    if test is not None:
        return _in_order(PredictionInput(test, labelled=True, source="the test set"), names, model)
    whole = "all examples" if dataset.test is None else "the training set"
    return _in_order(PredictionInput(dataset.train, labelled=True, source=whole), names, model)


def _of_task(model: CheckpointModel) -> dict[str, Any]:
    """What the task says of its data, by the keys of a data set in `client.yml`."""
    found: dict[str, Any] = {} if model.targets == "classes" else {"targets": model.targets}
    if model.targets == "tokens":
        found["length"] = model.spec.feature_shape[0]
    if model.data_schema is not None and model.data_schema.alphabet:
        found["alphabet"] = model.data_schema.alphabet
    return found


def _with_task_labels(dataset: DataSet, model: CheckpointModel) -> DataSet:
    """Classes that have words get the numbers of the same words in the task."""
    own = dataset.data_schema
    if model.targets != "classes" or own is None or not own.labels:
        return dataset
    train, test = (
        None if part is None else replace(part, labels=_as_in_task(part.labels, dataset, model))
        for part in (dataset.train, dataset.test)
    )
    return dataset if train is None else replace(dataset, train=train, test=test)


def _labels_in(source: PredictionSource, model: CheckpointModel) -> dict[str, Any]:
    """The columns of labels, as a data set's configuration names them; numbers and flags in the order of the task."""
    given = source.label_columns
    if not given:
        return {}
    if model.targets in NAMED_TARGETS:
        known = model.data_schema.labels if model.data_schema is not None else given
        if set(given) != set(known):
            raise BadInput(f"--label-column: {model.path} predicts {', '.join(known)}, given are {', '.join(given)}")
        return {"label_columns": list(known)}
    if len(given) > 1:
        raise BadInput(f"one --label-column holds the class; {len(given)} are given")
    return {"label_column": given[0]}


def _in_order(given: PredictionInput, names: Sequence[str], model: CheckpointModel) -> PredictionInput:
    """The columns of a table in the order of the model's task, and scaled as in the task."""
    schema = model.data_schema
    if schema is None or schema.kind != "table" or not names:
        return given
    own = DataSchema(kind="table", features=tuple(names), targets=schema.targets, labels=schema.labels)
    if text := own.difference(schema, whose=f"the data of {model.path.name}", scaling=False):
        raise BadInput(f"The table {text}")
    features = given.features.features[:, [names.index(name) for name in schema.features]]
    ordered = apply_scale(replace(given.features, features=np.ascontiguousarray(features)), scale_of(schema))
    return replace(given, features=ordered)


def _unlabelled(features: Any, source: str, *, tokens: bool = False) -> PredictionInput:
    scale = PIXEL_SCALE if features.dtype == np.uint8 and not tokens else 1.0
    return PredictionInput(Examples(features, np.zeros(len(features), np.int64), scale), labelled=False, source=source)


def _has_labels(path: Path) -> bool:
    return any(name in TRAIN_LABELS + TEST_LABELS for name in read_npz(path))


def _table_like(source: PredictionSource, model: CheckpointModel) -> PredictionInput:
    """Read a table, prepared like the node's own data set, with labels if it has the label column."""
    node = load_config(source.config, ClientConfig)
    config = next((dataset for dataset in node.datasets if dataset.name == source.like), None)
    if config is None:
        known = ", ".join(dataset.name for dataset in node.datasets)
        raise BadInput(f"{source.config} has no data set {source.like!r} (available: {known})")
    features = load_features(config, node.data, source.path)
    own = load_dataset(config, node.data)
    names = own.data_schema.features if own.data_schema is not None else ()
    table = find_format(config, find_path(node.data, config.path))
    if not isinstance(table, Table):
        raise BadInput(f"The data set {source.like} is not a table: omit --like, which scales the columns of a table")
    if source.label_columns:
        changed = _labels_in(source, model)
        none: dict[str, Any] = {"label_column": None, "label_columns": []}
        table = type(table)(table.options.model_copy(update=none | changed))
    origin = f"the table, prepared as {source.like}"
    if not set(table.options.target_columns) <= set(table.header(source.path)):
        return _in_order(_unlabelled(features, origin), names, model)
    labels = table.labels(config, source.path)
    if model.targets == "classes":
        labels = _as_in_task(labels, own, model)
    examples = Examples(features, labels, targets=model.targets)
    return _in_order(PredictionInput(examples, labelled=True, source=origin), names, model)


def _as_in_task(labels: IntArray, own: DataSet, model: CheckpointModel) -> IntArray:
    """Labels of a node's own numbers, by the words of the model's task."""
    if own.data_schema is None or model.data_schema is None:
        return labels
    words, known = own.data_schema.words(own.num_classes), model.data_schema.words(model.spec.num_classes)
    if unknown := unknown_words(words, known):
        raise BadInput(f"The data set has the labels {', '.join(unknown)}, the model knows {', '.join(known)}")
    numbers: IntArray = np.array([known.index(word) if word else 0 for word in words], np.int64)
    return numbers[labels]


def _read_columns(path: Path) -> tuple[list[str], FloatArray]:
    """Read a table of features: the names of its columns, and float32 [n, columns] in their order."""
    try:
        return Csv().header(path), Csv().all_columns(path)
    except BadInput as error:
        advice = "--label-column names a column with the class; --like fills and scales the columns as the node does"
        raise BadInput(f"{error} ({advice})") from error
