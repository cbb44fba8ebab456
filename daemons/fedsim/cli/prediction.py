"""The implementation of `fedsim predict`: loads a checkpoint and examples, and writes predictions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import nn

from fedsim.cli.output import number, share
from fedsim.config import ClientConfig, DataSetConfig, load_config
from fedsim.data import DataSet, load_dataset, load_features
from fedsim.data.formats import find_format
from fedsim.data.load import find_path
from fedsim.data.npz import PIXEL_SCALE, TEST_LABELS, TRAIN_LABELS, read_features, read_npz
from fedsim.data.table import Csv, Table, is_table
from fedsim.data_schema import TARGETS, DataSchema, unknown_words
from fedsim.errors import BadInput
from fedsim.learning.common_scale import apply_scale, scale_of
from fedsim.learning.evaluate import Evaluation, evaluate, predict
from fedsim.learning.examples import Examples, FloatArray, IntArray
from fedsim.learning.metrics import ClassValue, Metric, MetricFormat
from fedsim.learning.objectives.classification import CLASSIFICATION
from fedsim.messages import ModelSpec
from fedsim.spool.durable import write_all
from fedsim.worker.checkpoint import load_checkpoint, task_schema

BLOCK = 2000
"""Number of examples that are predicted and written at a time."""


@dataclass(frozen=True)
class PredictionSource:
    """The location and format of examples, from the command line."""

    path: Path
    dataset_format: str | None = None
    label_column: str | None = None
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
    """The model of a checkpoint, its specification, and the columns and labels of its task, if they are recorded."""

    path: Path
    module: nn.Module
    spec: ModelSpec
    data_schema: DataSchema | None = None

    def evaluate(self, given: PredictionInput) -> Evaluation | None:
        """The metrics of the model on the examples; None without labels."""
        return evaluate(self.module, given.features) if given.labelled else None


def as_json_values(evaluation: Evaluation | None) -> dict[str, Any]:
    """An evaluation for `--json`."""
    if evaluation is None:
        return {"metrics": None, "class_metrics": None}
    return {"metrics": evaluation.metrics, "class_metrics": evaluation.class_metrics}


def describe(evaluation: Evaluation | None) -> Iterator[str]:
    """Describe an evaluation: a line for the metrics, and a line for each per-class metric."""
    if evaluation is None:
        return
    metrics = CLASSIFICATION.in_order(evaluation.metrics)
    yield ", ".join(f"{metric.name} {_written(metric, evaluation.metrics[metric.name])}" for metric in metrics)
    for metric in CLASSIFICATION.in_order(evaluation.class_metrics):
        values = enumerate(evaluation.class_metrics[metric.name])
        yield f"{metric.name} " + ", ".join(f"class {i}: {_written(metric, value)}" for i, value in values)


def _written(metric: Metric, value: ClassValue) -> str:
    if isinstance(value, tuple):
        return " ".join(_written(metric, one) for one in value)
    return share(value) if metric.format is MetricFormat.SHARE else number(value)


def open_model(path: Path) -> CheckpointModel:
    """Load the model of a checkpoint; raises `BadInput` if it is invalid."""
    schema = task_schema(path)
    if schema is not None and schema.targets != "classes":
        raise BadInput(
            f"{path} predicts {TARGETS[schema.targets]}, and this command gives one class of each example: load it "
            "with fedsim.worker.checkpoint.load_checkpoint and call the model"
        )
    return CheckpointModel(path, *load_checkpoint(path), schema)


def load_examples(source: PredictionSource, model: CheckpointModel) -> PredictionInput:
    """Read the examples, and check that they match the model.

    Raises:
        BadInput: they cannot be read, or have another shape or other classes than the model was trained for.
    """
    path = source.path
    table = is_table(source.dataset_format, path)
    if source.like is not None and not table:
        raise BadInput(f"{path} is not a table: omit --like, which scales the columns of a table")
    if source.label_column is not None and not table:
        raise BadInput(f"{path} is not a table: omit --label-column")
    try:
        if source.like is not None:
            given = _table_like(source, model)
        elif table and source.label_column is None:
            names, columns = _read_columns(path)
            given = _in_order(_unlabelled(columns, "the table"), names, model)
        elif path.suffix.lower() == ".npy" or (path.suffix.lower() == ".npz" and not _has_labels(path)):
            given = _unlabelled(read_features(path), "the array")
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
    highest = int(given.features.labels.max(initial=0))
    if given.labelled and highest >= model.spec.num_classes:
        raise BadInput(
            f"{path} has the class {highest}, but {model.path} knows the classes 0 to {model.spec.num_classes - 1}"
        )
    return given


def _of_data_set(source: PredictionSource, model: CheckpointModel) -> PredictionInput:
    """Read labelled data in one of the formats of `fedsim.data`."""
    path = source.path.absolute()
    config = DataSetConfig.model_validate(
        {"name": "given", "path": path.name, "format": source.dataset_format}
        | ({} if source.label_column is None else {"label_column": source.label_column})
    )
    dataset = load_dataset(config, path.parent)
    if source.part == "test" and dataset.test is None:
        raise BadInput(f"{source.path} has no test set: omit --part")
    test = dataset.test if source.part != "train" else None
    names = dataset.data_schema.features if dataset.data_schema is not None else ()
    if test is not None:
        return _in_order(PredictionInput(test, labelled=True, source="the test set"), names, model)
    whole = "all examples" if dataset.test is None else "the training set"
    return _in_order(PredictionInput(dataset.train, labelled=True, source=whole), names, model)


def _in_order(given: PredictionInput, names: Sequence[str], model: CheckpointModel) -> PredictionInput:
    """The columns of a table in the order of the model's task, and scaled as in the task."""
    schema = model.data_schema
    if schema is None or schema.kind != "table" or not names:
        return given
    own = DataSchema(kind="table", features=tuple(names))
    if text := own.difference(schema, whose=f"the data of {model.path.name}", scaling=False):
        raise BadInput(f"The table {text}")
    features = given.features.features[:, [names.index(name) for name in schema.features]]
    ordered = apply_scale(replace(given.features, features=np.ascontiguousarray(features)), scale_of(schema))
    return replace(given, features=ordered)


def _unlabelled(features: Any, source: str) -> PredictionInput:
    scale = PIXEL_SCALE if features.dtype == np.uint8 else 1.0
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
    if source.label_column is not None:
        table = type(table)(table.options.model_copy(update={"label_column": source.label_column}))
    origin = f"the table, prepared as {source.like}"
    if table.options.label_column not in table.header(source.path):
        return _in_order(_unlabelled(features, origin), names, model)
    labels = _as_in_task(table.labels(config, source.path), own, model)
    return _in_order(PredictionInput(Examples(features, labels), labelled=True, source=origin), names, model)


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


def write_predictions(model: CheckpointModel, given: PredictionInput, file: BinaryIO) -> None:
    """Write CSV: example (counted from 0), label where there are labels, predicted, and each class's probability."""
    columns = ["example", *(["label"] if given.labelled else []), "predicted"]
    _write(file, [[*columns, *(f"probability_{label}" for label in range(model.spec.num_classes))]])
    for start in range(0, len(given.features), BLOCK):
        here = slice(start, start + BLOCK)
        probabilities = predict(model.module, given.features.take(here))
        labels = given.features.labels[here]
        _write(
            file,
            [
                [start + i, *([labels[i]] if given.labelled else []), row.argmax(), *(f"{p:.6g}" for p in row)]
                for i, row in enumerate(probabilities)
            ],
        )


def _write(file: BinaryIO, rows: list[list[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_all(file, text.getvalue().encode())
