"""CSV tables: a header with the names of the columns, an example in each line, a column with the label.

Scaling and the replacement of missing values are determined from the training file only, and then applied to the test
file and to examples for prediction.
"""

from __future__ import annotations

import csv
from array import array
from collections import Counter
from dataclasses import dataclass
from math import inf, isfinite, isnan, nan
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.config.models import DataSetConfig
from fedsim.data.formats import Format
from fedsim.data.schema import table_schema
from fedsim.data.split import split_indices
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet, Examples, FloatArray, IntArray
from fedsim.messages import MAX_CLASSES

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
FLOAT32_MAX = float(np.finfo(np.float32).max)
Values = NDArray[np.float64]


class Csv(Format):
    """A file that ends in .csv; `label_column` is required, `id_column` is not a feature."""

    title = "CSV – a table"
    keys = frozenset({"test_path", "label_column", "id_column", "scale", "scale_values", "missing", "labels"})

    def detect(self, path: Path) -> bool:
        """Whether the file ends in .csv."""
        return path.is_file() and path.suffix.lower() == ".csv"

    def load(self, config: DataSetConfig, path: Path, test_path: Path | None) -> DataSet:
        """float32 [n, columns], in the order of the training file's columns."""
        table = _read_table(config, path)
        rows, test_rows = _split(config, table, path)
        preparation = _prepare(config, table, rows, path)
        train = Examples(preparation.apply(table.values[rows]), table.labels[rows])
        test = None
        if test_path is not None:
            other = _read_table(config, test_path, table.columns)
            test = Examples(preparation.apply(other.values), other.labels)
        elif test_rows is not None:
            test = Examples(preparation.apply(table.values[test_rows]), table.labels[test_rows])
        top = max(int(part.labels.max(initial=0)) for part in (train, test) if part is not None)
        known = max(config.labels.values(), default=0) if config.labels else 0
        num_classes = max(top + 1, known + 1, 2)
        return DataSet(train, test, num_classes, table_schema(config, table.columns, num_classes))


def load_table_features(config: DataSetConfig, train_path: Path, file: Path) -> FloatArray:
    """Read a table without labels, prepared like the training file: float32 [n, columns]; raises `BadInput`."""
    table = _read_table(config, train_path)
    rows, _ = _split(config, table, train_path)
    preparation = _prepare(config, table, rows, train_path)
    return preparation.apply(_read_table(config, file, table.columns, with_labels=False).values)


@dataclass(frozen=True)
class _Table:
    """The file's feature columns, float64 [n, columns] with NaN where a value is missing, and int64 labels."""

    columns: list[str]
    values: Values
    labels: IntArray


def _split(config: DataSetConfig, table: _Table, path: Path) -> tuple[IntArray | slice, IntArray | None]:
    """The training rows, and the test rows if they are split off."""
    if config.test_path is not None or config.test_share is None:
        return slice(None), None
    return split_indices(len(table.labels), config.test_share, str(path))


@dataclass(frozen=True)
class _Preparation:
    """The transformation of each column: fill missing values, subtract, divide; all float64 [columns]."""

    fill: Values
    subtract: Values
    divide: Values

    def apply(self, values: Values) -> FloatArray:
        filled = np.where(np.isnan(values), self.fill, values)
        with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which is reported with its position
            return ((filled - self.subtract) / self.divide).astype(np.float32)


def _prepare(config: DataSetConfig, table: _Table, rows: IntArray | slice, path: Path) -> _Preparation:
    """Determine the transformation of each column from the training rows."""
    values, columns = table.values[rows], table.columns
    present = ~np.isnan(values)
    counts = np.asarray(present.sum(axis=0))
    if not counts.all():
        empty = columns[int(np.argmin(counts))]
        raise BadInput(f"{path}: column {empty} has no values; remove it from the file")
    mean = np.where(present, values, 0.0).sum(axis=0) / counts
    subtract, divide = np.zeros(len(columns)), np.ones(len(columns))
    if config.scale_values is not None:
        if config.scale != "none":
            raise BadInput(f"data set {config.name}: use scale_values or scale: {config.scale}, not both")
        for column, (low, width) in config.scale_values.items():
            if column not in columns:
                raise BadInput(f"data set {config.name}: scale_values names {column!r}; columns are {_some(columns)}")
            if width == 0:
                raise BadInput(f"data set {config.name}: scale_values would divide {column} by 0")
            subtract[columns.index(column)], divide[columns.index(column)] = low, width
    elif config.scale == "standard":
        subtract = mean
        divide = np.sqrt((np.where(present, values - mean, 0.0) ** 2).sum(axis=0) / counts)
    elif config.scale == "minmax":
        subtract = np.where(present, values, inf).min(axis=0)
        divide = np.where(present, values, -inf).max(axis=0) - subtract
    # A constant column carries no information: it becomes 0 instead of being divided by 0.
    return _Preparation(mean, subtract, np.where(divide == 0, 1.0, divide))


def _read_table(
    config: DataSetConfig, path: Path, wanted: list[str] | None = None, *, with_labels: bool = True
) -> _Table:
    """Read a CSV file; `wanted` are the required feature columns (in any order), None for all."""
    values, labels = array("d"), array("q")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            try:
                header = [name.strip() for name in next(lines, [])]
                layout = _Layout.find(config, path, header, wanted, with_labels=with_labels)
                for cells in lines:
                    if cells and (row := layout.read(cells, lines.line_num)) is not None:
                        values.extend(row[0])
                        labels.append(row[1])
            except csv.Error as error:
                raise BadInput(f"{path}: line {lines.line_num}: not valid CSV ({error})") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error.reason}); save the table as UTF-8") from error
    if not labels:
        raise BadInput(f"{path}: it contains no examples; each needs a line below the header")
    return _Table(layout.columns, np.array(values).reshape(len(labels), -1), np.array(labels, np.int64))


@dataclass(frozen=True)
class _Layout:
    """The positions of features and label in a line of a file, and the conversion of cells to numbers."""

    config: DataSetConfig
    path: Path
    header: list[str]
    columns: list[str]
    label_at: int | None

    @classmethod
    def find(
        cls, config: DataSetConfig, path: Path, header: list[str], wanted: list[str] | None, *, with_labels: bool
    ) -> _Layout:
        """Check the header."""
        double = [name for name, times in Counter(header).items() if times > 1]
        if not header or double:
            problem = f"contains {double[0]!r} twice" if double else "is empty"
            raise BadInput(f"{path}: line 1: the header {problem}; it must contain each column once")
        for text, number in (config.labels or {}).items():
            if not 0 <= number < MAX_CLASSES:
                raise BadInput(
                    f"data set {config.name}: `labels` gives {text!r} the class {number}; "
                    f"classes are 0 to {MAX_CLASSES - 1}"
                )
        label = config.label_column
        if label is None:
            raise BadInput(f"data set {config.name}: set label_column to one of {path}'s columns {_some(header)}")
        if with_labels and label not in header:
            raise BadInput(f"{path}: line 1: no label_column {label!r}; columns are {_some(header)}")
        if with_labels and config.id_column is not None and config.id_column not in header:
            raise BadInput(f"{path}: line 1: no id_column {config.id_column!r}; columns are {_some(header)}")
        columns = wanted or [name for name in header if name not in {label, config.id_column}]
        there = set(header)
        missing = [name for name in columns if name not in there]
        if missing or not columns:
            problem = f"the columns {_some(missing)} are missing" if missing else "no column is a feature"
            raise BadInput(f"{path}: line 1: {problem}; columns are {_some(header)}")
        unused = there - {*columns, label, config.id_column}
        if unused:
            raise BadInput(f"{path}: line 1: the training file has no columns {_some(sorted(unused))}; remove them")
        return cls(config, path, header, columns, header.index(label) if with_labels else None)

    def read(self, cells: list[str], line: int) -> tuple[list[float], int] | None:
        """Parse the features and the label (0 without labels) of a line; None if the line is to be dropped."""
        if len(cells) != len(self.header):
            raise BadInput(
                f"{self.path}: line {line}: {len(cells)} values, but {len(self.header)} columns in the header"
            )
        cell_of = dict(zip(self.header, cells, strict=True))
        row = [self._value(cell_of[column], column, line) for column in self.columns]
        label = 0 if self.label_at is None else self._label(cells[self.label_at].strip(), line)
        if label is None or (self._drops and any(map(isnan, row))):
            return None
        return row, label

    @property
    def _drops(self) -> bool:
        # Every line of a file without labels needs a prediction.
        return self.config.missing == "drop" and self.label_at is not None

    def _value(self, cell: str, column: str, line: int) -> float:
        text = cell.strip()
        if text.lower() in MISSING:
            if self._drops or self.config.missing == "mean":
                return nan
            raise BadInput(
                f"{self.path}: line {line}: column {column} has no value; fill it, or set `missing` to drop or mean"
            )
        try:
            value = float(text)
        except ValueError:
            value = nan
        if not isfinite(value) or abs(value) > FLOAT32_MAX:
            raise BadInput(f"{self.path}: line {line}: column {column}: {text[:40]!r} is not a finite number")
        return value

    def _label(self, text: str, line: int) -> int | None:
        if text.lower() in MISSING and text not in (self.config.labels or {}):
            if self._drops:
                return None
            raise BadInput(f"{self.path}: line {line}: the label is missing; fill it, or set `missing: drop`")
        if self.config.labels is not None:
            if text not in self.config.labels:
                known = _some(list(self.config.labels))
                raise BadInput(f"{self.path}: line {line}: `labels` has no class for {text[:40]!r}, only for {known}")
            return self.config.labels[text]
        try:
            number = float(text)
        except ValueError:
            number = nan
        if not (number.is_integer() and 0 <= number < MAX_CLASSES):
            raise BadInput(
                f"{self.path}: line {line}: the label {text[:40]!r} is not a class number (0, 1, …); "
                "set `labels` to the class of each label"
            )
        return int(number)


def _some(names: list[str]) -> str:
    """Join the names; of many only the first."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
