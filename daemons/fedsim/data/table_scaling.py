"""Preparation of a table's features: the mean for missing values, and scaling, found on the training rows.

Rows are converted in blocks, so that a large table is not in memory twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.table_layout import Values, some
from fedsim.data.table_options import TableOptions
from fedsim.errors import BadInput
from fedsim.learning.examples import FloatArray, IntArray

BLOCK_ROWS = 2**14


def _blocks(values: Values, rows: IntArray | slice) -> Iterator[Values]:
    """Copies of the rows, some at a time. A single column is one block, because numpy adds its values in pairs."""
    count = len(values) if isinstance(rows, slice) else len(rows)
    step = count if values.shape[1] == 1 else BLOCK_ROWS
    for start in range(0, count, step):
        part = slice(start, start + step)
        yield values[part].copy() if isinstance(rows, slice) else values[rows[part]]


def _total(values: Values, rows: IntArray | slice, term: Callable[[Values], NDArray[Any]]) -> Values:
    """The sum of the terms of each column over the rows, in their order, so that it does not depend on the blocks."""
    total = np.zeros(values.shape[1])
    for block in _blocks(values, rows):
        terms = term(block).astype(np.float64, copy=False)
        terms[0] += total
        total = terms.sum(axis=0)
    return total


@dataclass(frozen=True)
class Preparation:
    """The transformation of each column: fill missing values, subtract, divide; all float64 [columns]."""

    fill: Values
    subtract: Values
    divide: Values

    def apply(self, values: Values, rows: IntArray | slice = slice(None)) -> FloatArray:
        """Transform the rows: float32 [n, columns]."""
        count = len(values) if isinstance(rows, slice) else len(rows)
        result = np.empty((count, values.shape[1]), np.float32)
        start = 0
        for block in _blocks(values, rows):
            filled = np.where(np.isnan(block), self.fill, block)
            with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which is reported
                result[start : start + len(block)] = (filled - self.subtract) / self.divide
            start += len(block)
        return result


def prepare(
    options: TableOptions, name: str, path: Path, table: tuple[list[str], Values], rows: IntArray | slice
) -> Preparation:
    """Determine the transformation of each column from the training rows of `table`, its columns and values."""
    columns, values = table
    counts = _total(values, rows, lambda block: ~np.isnan(block))
    if not counts.all():
        empty = columns[int(np.argmin(counts))]
        raise BadInput(f"{path}: column {empty} has no values; remove it from the file")
    mean = _total(values, rows, lambda block: np.where(np.isnan(block), 0.0, block)) / counts
    subtract, divide = np.zeros(len(columns)), np.ones(len(columns))
    if options.scale_values:
        if options.scale != "none":
            raise BadInput(f"{name}: use scale_values or scale: {options.scale}, not both")
        for column, (low, width) in options.scale_values.items():
            if column not in columns:
                raise BadInput(f"{name}: scale_values names {column!r}; columns are {some(columns)}")
            if width == 0:
                raise BadInput(f"{name}: scale_values would divide {column} by 0")
            subtract[columns.index(column)], divide[columns.index(column)] = low, width
    elif options.scale == "standard":
        subtract = mean
        squares = _total(values, rows, lambda block: np.where(np.isnan(block), 0.0, block - mean) ** 2)
        divide = np.sqrt(squares / counts)
    elif options.scale == "minmax":
        blocks = [(np.fmin.reduce(block), np.fmax.reduce(block)) for block in _blocks(values, rows)]
        subtract = np.fmin.reduce([low for low, _ in blocks])
        divide = np.fmax.reduce([high for _, high in blocks]) - subtract
    # A constant column carries no information: it becomes 0 instead of being divided by 0.
    return Preparation(mean, subtract, np.where(divide == 0, 1.0, divide))
