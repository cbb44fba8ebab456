"""Standardisation that is fitted on the rows of all nodes together, from sums that they report before round 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from fedsim.data_schema import COMMON, DataSchema
from fedsim.errors import BadInput
from fedsim.learning.engines import ClientData
from fedsim.learning.examples import DataSet, Examples
from fedsim.learning.phases import Content, Phase

Scale = tuple[tuple[float, float], ...]
"""For each column, what is subtracted from it, and by what it is divided."""
BLOCK = 10_000
"""Examples of which sums are made at a time."""
LEAST_VARIANCE = 1e-12
"""A variance below this share of the mean square is rounding: the column is constant."""


class CommonScale(Phase):
    """Ask each node for the count, the sum and the sum of squares of each column over its training examples."""

    name = "common_scale"
    timeout_seconds = 300.0

    def answer(self, question: Content, data: ClientData) -> Content:  # noqa: ARG002 - the same for all
        """Sums in float64, in the order of the examples."""
        return sums(data.train)

    def summary(self, answers: Mapping[str, Content]) -> str:
        """Whose examples count."""
        count = sum(int(answer["count"]) for answer in answers.values())
        return f"the columns are standardised by {count} examples of {', '.join(answers)} together"


def scaling_phases(schema: DataSchema | None) -> tuple[Phase, ...]:
    """The phase that a data set with `scale: common` adds to a task."""
    return (CommonScale(),) if schema is not None and schema.scaling == COMMON else ()


def sums(examples: Examples) -> Content:
    """The count, and for each column the sum and the sum of squares."""
    width = examples.features.shape[1]
    total, squares = np.zeros(width), np.zeros(width)
    for start in range(0, len(examples), BLOCK):
        block = examples.features[start : start + BLOCK].astype(np.float64)
        total += block.sum(axis=0)
        squares += (block**2).sum(axis=0)
    return {"count": len(examples), "sum": total.tolist(), "squares": squares.tolist()}


def fit(answers: Mapping[str, Content], num_columns: int) -> Scale:
    """The mean and the standard deviation of each column over all nodes; a constant column is only shifted.

    Raises:
        BadInput: an answer is not what `CommonScale` asks for.
    """
    count, total, squares = 0, np.zeros(num_columns), np.zeros(num_columns)
    for node, answer in sorted(answers.items()):
        number = answer.get("count")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= 10**12:
            raise BadInput(f"node {node} reported no number of examples for the common scaling")
        count += number
        total += _numbers(node, answer.get("sum"), num_columns)
        squares += _numbers(node, answer.get("squares"), num_columns)
    if not count:
        raise BadInput("no node reported the sums for the common scaling")
    mean, square = total / count, squares / count
    variance = np.maximum(square - mean**2, 0.0)
    deviation = np.where(variance > LEAST_VARIANCE * square, np.sqrt(variance), 1.0)
    return tuple(zip(mean.tolist(), deviation.tolist(), strict=True))


def _numbers(node: str, given: object, length: int) -> NDArray[np.float64]:
    plain = isinstance(given, list) and len(given) == length
    if not (plain and all(type(value) in {int, float} and isfinite(value) for value in given)):  # type: ignore[attr-defined]
        raise BadInput(f"node {node} reported no finite sums of {length} columns for the common scaling")
    return np.array(given, np.float64)


def apply_scale(examples: Examples, scale: Sequence[tuple[float, float]]) -> Examples:
    """Standardise the columns; the examples that are given stay as they are."""
    if not scale:
        return examples
    shift, divide = np.array(scale, np.float64).T
    return replace(examples, features=((examples.features - shift) / divide).astype(np.float32))


def fitted(schema: DataSchema, scale: Scale) -> DataSchema:
    """The task's schema with the numbers of its common scaling, if they are known."""
    values = dict(zip(schema.features, scale, strict=True)) if scale else schema.scale_values
    return schema.model_copy(update={"scale_values": values})


def scale_of(schema: DataSchema) -> Scale:
    """The numbers of a fitted common scaling, in the order of the columns; empty for any other schema."""
    if schema.scaling != COMMON or not schema.scale_values:
        return ()
    return tuple(schema.scale_values[name] for name in schema.features)


def scale_together(datasets: Sequence[DataSet]) -> list[DataSet]:
    """Standardise the data sets of all nodes together, training and test examples, if their schema asks for it."""
    if any(dataset.data_schema is None or dataset.data_schema.scaling != COMMON for dataset in datasets):
        return list(datasets)
    answers = {f"{number:06}": sums(dataset.train) for number, dataset in enumerate(datasets)}
    scale = fit(answers, datasets[0].feature_shape[0])
    return [
        replace(
            dataset,
            train=apply_scale(dataset.train, scale),
            test=None if dataset.test is None else apply_scale(dataset.test, scale),
            held_out=None if dataset.held_out is None else apply_scale(dataset.held_out, scale),
        )
        for dataset in datasets
    ]
