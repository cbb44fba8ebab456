"""The cells of a table: numbers, class labels, and the marks of a missing value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsim.learning.examples import IntArray
from fedsim.messages import MAX_CLASSES

if TYPE_CHECKING:
    import polars as pl

MISSING = frozenset(
    {"", "?", ".", "na", "n/a", "nan", "null", "none", "nil", "<na>", "nat", "\\n"}
    | {"#n/a", "#nv", "#div/0!", "#value!", "#wert!", "#ref!", "#bezug!", "#num!", "#zahl!", "#name?", "#null!"}
)
"""Marks of a missing value in lower case: those of pandas, R, MySQL (`\\N`), SAS (`.`) and spreadsheets."""
FLOAT32_MAX = float(np.finfo(np.float32).max)
NO_LABEL, WRONG_LABEL = -1, -2
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class CellReader:
    """Converts columns of cells.

    Attributes:
        decimal: the decimal mark of numbers in text.
        marks: further marks of a missing value, as they are written in the file.
        labels: the class of each label; empty: labels are class numbers.
    """

    decimal: str
    marks: tuple[str, ...]
    labels: Mapping[str, int]

    def table(self, columns: Sequence[pl.Series]) -> tuple[NDArray[np.float64], Flags, Flags]:
        """The `numbers` of columns of the same length, each array of the shape (rows, columns).

        Columns of one type are converted together: a query for each of very many columns takes minutes.
        """
        import polars as pl  # noqa: PLC0415 - its threads must not exist before a worker is forked

        shape = len(columns), -1
        if len({str(column.dtype) for column in columns}) == 1:
            values, missing, wrong = self.numbers(pl.concat(columns))
            return values.reshape(shape).T, missing.reshape(shape).T, wrong.reshape(shape).T
        parts = zip(*map(self.numbers, columns), strict=True)
        values, missing, wrong = (np.column_stack(part) for part in parts)
        return values, missing, wrong

    def numbers(self, cells: pl.Series) -> tuple[NDArray[np.float64], Flags, Flags]:
        """The values with NaN where there is none; which are missing, and which are no finite number."""
        import polars as pl  # noqa: PLC0415 - see `table`

        if isinstance(cells.dtype, pl.String | pl.Categorical | pl.Enum):
            text = cells.cast(pl.String).fill_null("").str.strip_chars()
            values = self._parsed(text)
            missing = text.str.to_lowercase().is_in(sorted(MISSING | {mark.lower() for mark in self.marks}))
        else:
            values = cells.cast(pl.Float64, strict=False).fill_nan(None)
            missing = values.is_null()
        own = self._parsed(pl.Series(self.marks, dtype=pl.String)).drop_nulls()
        if len(own):
            missing |= values.is_in(own).fill_null(value=False)
        parsed, gone = values.fill_null(nan).to_numpy(), missing.to_numpy()
        wrong = ~gone & ~(np.abs(parsed) <= FLOAT32_MAX)
        return np.where(gone, nan, parsed), gone, wrong

    def _parsed(self, text: pl.Series) -> pl.Series:
        """Null where the text is no number; polars itself would also take `1_000`."""
        import polars as pl  # noqa: PLC0415 - see `table`

        mark = "," if self.decimal == "," else r"\."
        number = rf"^[+-]?([0-9]+{mark}?[0-9]*|{mark}[0-9]+)([eE][+-]?[0-9]+)?$"
        plain = text.str.replace(",", ".", literal=True) if self.decimal == "," else text
        return plain.zip_with(text.str.contains(number), pl.Series([None], dtype=pl.String)).cast(pl.Float64)

    def classes(self, cells: pl.Series) -> IntArray:
        """The class of each label, `NO_LABEL` if it is missing, `WRONG_LABEL` if it has no class."""
        import polars as pl  # noqa: PLC0415 - see `table`

        text = cells.cast(pl.Int8) if isinstance(cells.dtype, pl.Boolean) and not self.labels else cells
        text = text.cast(pl.String).fill_null("").str.strip_chars()
        known = text.unique()
        numbers = self._parsed(known).to_list()
        found = [self._class(label, number) for label, number in zip(known.to_list(), numbers, strict=True)]
        return np.asarray(text.replace_strict(known, found, return_dtype=pl.Int64).to_numpy())

    def _class(self, text: str, number: float | None) -> int:
        whole = int(number) if number is not None and abs(number) < 2**53 and number == int(number) else None
        if text in self.labels:
            return self.labels[text]
        if self.labels and whole is not None and str(whole) in self.labels:
            return self.labels[str(whole)]
        if text.lower() in MISSING or text in self.marks:
            return NO_LABEL
        return whole if not self.labels and whole is not None and 0 <= whole < MAX_CLASSES else WRONG_LABEL
