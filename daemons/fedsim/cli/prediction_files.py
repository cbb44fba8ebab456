"""What `fedsim predict` writes: CSV of classes, numbers and flags; an array of NumPy of tokens and masks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from fedsim.cli.prediction import CheckpointModel, PredictionInput
from fedsim.learning.evaluate import predict
from fedsim.spool.durable import write_all

BLOCK = 2000
"""Number of examples that are predicted and written at a time."""
ARRAYS = frozenset({"tokens", "mask"})
"""Kinds of targets of which each example has too many for a row of a table."""
THRESHOLD = 0.5
"""A flag is predicted from this probability on."""


def write_predictions(model: CheckpointModel, given: PredictionInput, file: BinaryIO) -> None:
    """Write the predictions for all examples, in their order.

    Of tokens and masks this is an array of NumPy, int64 [n, length] or [n, height, width]. Otherwise CSV with the
    columns example (counted from 0); label where there are labels; predicted; and the probability of each class. With
    numbers and flags there is a label and a prediction of each column, and with flags a probability.
    """
    if model.targets in ARRAYS:
        _write_array(model, given, file)
        return
    if model.targets == "classes":
        words = tuple(map(str, range(model.spec.num_classes)))
        header = [*(["label"] if given.labelled else []), "predicted", *(f"probability_{word}" for word in words)]
    else:
        words = _column_names(model)
        columns = ["label", "predicted", "probability"] if model.targets == "flags" else ["label", "predicted"]
        header = [f"{column}_{word}" for column in columns if given.labelled or column != "label" for word in words]
    _write_rows(file, [["example", *header]])
    for start, predicted in _blocks(model, given):
        labels = given.features.labels[start : start + len(predicted)]
        known = labels.reshape(len(labels), -1).tolist() if given.labelled else [[]] * len(predicted)
        rows = zip(known, predicted, strict=True)
        _write_rows(file, [[start + i, *label, *_cells(model, row)] for i, (label, row) in enumerate(rows)])


def _column_names(model: CheckpointModel) -> tuple[str, ...]:
    """The names of the numbers or flags; 0, 1, … where the task's data had none."""
    if model.data_schema is None:
        return tuple(map(str, range(model.spec.num_classes)))
    return model.data_schema.words(model.spec.num_classes)


def _cells(model: CheckpointModel, row: NDArray[Any]) -> list[Any]:
    written = [f"{value:.6g}" for value in row]
    match model.targets:
        case "classes":
            return [row.argmax(), *written]
        case "flags":
            return [*(int(value >= THRESHOLD) for value in row), *written]
        case _:
            return list(written)


def _blocks(model: CheckpointModel, given: PredictionInput) -> Iterator[tuple[int, NDArray[Any]]]:
    for start in range(0, len(given.features.features), BLOCK):
        features = given.features.take(slice(start, start + BLOCK))
        yield start, predict(model.module, features, model.targets)


def _write_array(model: CheckpointModel, given: PredictionInput, file: BinaryIO) -> None:
    for start, predicted in _blocks(model, given):
        if start == 0:
            shape = (len(given.features.features), *predicted.shape[1:])
            header = io.BytesIO()
            descr = npy_format.dtype_to_descr(predicted.dtype)
            npy_format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
            write_all(file, header.getvalue())
        write_all(file, np.ascontiguousarray(predicted).data)


def _write_rows(file: BinaryIO, rows: list[list[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_all(file, text.getvalue().encode())
