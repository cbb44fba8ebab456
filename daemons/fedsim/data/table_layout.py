"""The layout of a table: which columns are features and label, and the conversion of rows."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsim import data_schema
from fedsim.data.table_cells import NO_LABEL, WRONG_LABEL, CellReader
from fedsim.data.table_options import TableOptions, composed
from fedsim.data.table_parquet import ParquetTable
from fedsim.data.table_text import SEPARATORS, TextTable
from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray
from fedsim.messages import MAX_CLASSES

if TYPE_CHECKING:
    import polars as pl

Values = NDArray[np.float64]
UNNAMED = re.compile(r"(Unnamed: \d+)?")
"""The header of a column without a name, and the name that pandas gives it when it writes the table again."""
NUMBER = re.compile(r"[+-]?[0-9]*[.,]?[0-9]+([eE][+-]?[0-9]+)?")
SHOWN_COLUMNS = 20


@dataclass(frozen=True)
class TableLayout:
    """The positions of features and labels in a row of a file, and the conversion of its cells."""

    options: TableOptions
    source: TextTable | ParquetTable
    columns: list[str]
    positions: list[int]
    labels_at: list[int]
    client_at: int | None
    cells: CellReader

    @classmethod
    def find(
        cls,
        options: TableOptions,
        name: str,
        source: TextTable | ParquetTable,
        wanted: list[str] | None,
        *,
        with_labels: bool,
    ) -> TableLayout:
        """Check the header."""
        header = [composed(column) for column in source.header]
        place = f"{source.path}: line 1: " if source.unit == "line" else f"{source.path}: "
        _check_names(header, options, source, place)
        for text, number in options.labels.items():
            if not 0 <= number < MAX_CLASSES:
                raise BadInput(
                    f"{name}: `labels` gives {text!r} the class {number}; classes are 0 to {MAX_CLASSES - 1}"
                )
        labels, ignored, client = options.target_columns, options.id_column, options.client_column
        if wanted is None and not labels:
            raise BadInput(f"{name}: set label_column to one of {source.path}'s columns {some(header)}")
        for label in labels if with_labels else ():
            if label not in header:
                raise BadInput(f"{place}no label_column {label!r}; columns are {some(header)}")
        if with_labels and ignored is not None and ignored not in header:
            raise BadInput(f"{place}no id_column {ignored!r}; columns are {some(header)}")
        # Test files and files for prediction need no client column.
        if wanted is None and client is not None and client not in header:
            raise BadInput(f"{place}no client_column {client!r}; columns are {some(header)}")
        columns = wanted or [column for column in header if column not in {*labels, ignored, client}]
        position = {column: at for at, column in enumerate(header)}
        missing = [column for column in columns if column not in position]
        if missing or not columns:
            problem = f"the columns {some(missing)} are missing" if missing else "no column is a feature"
            raise BadInput(f"{place}{problem}; columns are {some(header)}")
        unused = set(header) - {*columns, *labels, ignored, client}
        if unused:
            raise BadInput(f"{place}the training file has no columns {some(sorted(unused))}; remove them")
        cells = CellReader(source.decimal_mark, tuple(options.missing_values), options.labels)
        at = list(map(header.index, labels)) if with_labels else []
        client_at = position[client] if wanted is None and client is not None else None
        return cls(options, source, columns, [position[column] for column in columns], at, client_at, cells)

    def read(self, lines: IntArray, cells: pl.DataFrame) -> tuple[Values, IntArray | Values, list[str]]:
        """The features, the labels (0 without labels) and the names of the clients of the rows that are not dropped.

        Labels are int64 [rows], numbers and flags float64 [rows, k]; without a client column there are no names.
        """
        count = len(lines)
        problems: list[tuple[int, str]] = []  # the first row with each kind of problem
        columns = [cells.to_series(at) for at in self.positions]
        for column, series in zip(self.columns, columns, strict=True):
            self._check_type(series, column)
        values, missing, wrong = self.cells.table(columns)
        keep = np.ones(count, np.bool_)
        # Every row of a file without labels needs a prediction.
        drops = self.options.missing == "drop" and bool(self.labels_at)
        if drops:
            keep &= ~missing.any(axis=1)
        filled = drops or self.options.missing == "mean"
        for number in np.flatnonzero((wrong if filled else wrong | missing).any(axis=0)):
            column = self.columns[number]
            if wrong[:, number].any():
                row = int(wrong[:, number].argmax())
                problems.append((row, f"column {column}: {self._not_a_number(columns[number][row])}"))
            if missing[:, number].any() and not filled:
                problem = f"column {column} has no value; fill it, or set `missing` to drop or mean"
                problems.append((int(missing[:, number].argmax()), problem))
        labels: Any = np.zeros(count, np.int64)
        if self.labels_at and self.options.targets != "classes":
            labels, missing, wrong = self.cells.table([cells.to_series(at) for at in self.labels_at])
            for at, column in enumerate(self.options.target_columns):
                if wrong[:, at].any():
                    row = int(wrong[:, at].argmax())
                    problems.append((row, f"column {column}: {self._not_a_number(cells[row, self.labels_at[at]])}"))
                if missing[:, at].any() and not drops:
                    problem = f"column {column}: the target is missing; fill it, or set `missing: drop`"
                    problems.append((int(missing[:, at].argmax()), problem))
            keep &= ~missing.any(axis=1)
        elif self.labels_at:
            series = cells.to_series(self.labels_at[0])
            labels = self.cells.classes(series)
            if not drops and (labels == NO_LABEL).any():
                row = int((labels == NO_LABEL).argmax())
                problems.append((row, "the label is missing; fill it, or set `missing: drop`"))
            if (labels == WRONG_LABEL).any():
                row = int((labels == WRONG_LABEL).argmax())
                problems.append((row, self._no_class(series[row])))
            keep &= labels != NO_LABEL
        names = [] if self.client_at is None else _names(cells.to_series(self.client_at))
        unnamed = [at for at, name in enumerate(names) if not name and keep[at]]
        if unnamed:
            problems.append((unnamed[0], f"column {self.options.client_column} is empty; name the client of each row"))
        if problems:
            row, problem = min(problems, key=lambda item: item[0])
            raise BadInput(f"{self.source.path}: {self.source.unit} {lines[row]}: {problem}")
        return values[keep], labels[keep], [name for name, kept in zip(names, keep, strict=False) if kept]

    def _check_type(self, series: pl.Series, column: str) -> None:
        if series.dtype.is_nested() or series.dtype.is_temporal():
            raise BadInput(
                f"{self.source.path}: column {column} has the type {series.dtype}; save it as numbers, or remove it"
            )

    def _not_a_number(self, cell: Any) -> str:
        text = str(cell).strip()[:40]
        problem = f"{text!r} is not a finite number"
        if self.cells.decimal == "." and "," in text and NUMBER.fullmatch(text):
            return f"{problem}; if its comma is a decimal comma, set `decimal: ','`"
        if self.cells.decimal == "," and "." in text and NUMBER.fullmatch(text):
            return f"{problem} with a decimal comma; if the point is its decimal mark, set `decimal: '.'`"
        return f"{problem}; if it marks a missing value, list it in `missing_values`"

    def _no_class(self, cell: Any) -> str:
        text = str(cell).strip()[:40]
        if self.options.labels:
            return f"`labels` has no class for {text!r}, only for {some(list(self.options.labels))}"
        return f"the label {text!r} is not a class number (0, 1, …); set `labels` to the class of each label"


def _names(series: pl.Series) -> list[str]:
    """The cells as text, "" where there is none."""
    return ["" if cell is None else str(cell).strip() for cell in series.to_list()]


def _check_names(header: list[str], options: TableOptions, source: TextTable | ParquetTable, place: str) -> None:
    """Every column has a name of its own."""
    if not header or header == [""]:
        raise BadInput(f"{place}the header is empty; it must contain each column once")
    if len(header) <= 2 and header[0].lower().startswith("sep="):
        raise BadInput(f"{place}{header[0]} is an instruction to a spreadsheet; remove the line")
    if not set(options.target_columns) & set(header) and len(header) > 1 and all(map(NUMBER.fullmatch, header)):
        raise BadInput(
            f"{place}{some(header)} look like values, not like names of columns; add a first line with the names"
        )
    unnamed = [at for at, column in enumerate(header, 1) if UNNAMED.fullmatch(column) and column != options.id_column]
    if unnamed == [len(header)] and header[-1] == "" and isinstance(source, TextTable):
        raise BadInput(
            f"{place}the last column has no name; name it, or, if it is empty, remove the "
            f"{SEPARATORS.get(source.delimiter, 'separator')} at the end of each line"
        )
    if unnamed:
        at = unnamed[0]
        raise BadInput(
            f"{place}column {at} has no name; name it, or, if it only counts the rows, leave it out with "
            f"`id_column: {header[at - 1]!r}`"
        )
    double = [column for column, times in Counter(header).items() if times > 1]
    if double:
        raise BadInput(f"{place}the header contains {double[0]!r} twice; it must contain each column once")


def some(names: list[str]) -> str:
    """Join the names; of many only the first."""
    return data_schema.some(names, most=SHOWN_COLUMNS)
