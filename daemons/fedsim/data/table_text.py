"""The text of a table: its separator, its decimal mark, its header, and its rows with the numbers of their lines.

polars splits the lines. From the first quote on Python's `csv` does it, because polars neither reports a line with too
few values nor the line of a problem; both give the same rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray

if TYPE_CHECKING:
    import polars as pl

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
SAMPLE_CHARACTERS = 2**16
SAMPLE_ROWS = 50
BATCH_CELLS = 2_000_000
GZIP = b"\x1f\x8b"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
NOT_IN_TEXT = "\x01"
"""A separator for polars that splits no line."""
_COMMA_NUMBER = re.compile(r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?")
_POINT_NUMBER = re.compile(r"[+-]?[0-9]*\.[0-9]+([eE][+-]?[0-9]+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")


@dataclass(frozen=True)
class TextTable:
    """A file of text; `separator` and `decimal` are detected where they are None."""

    path: Path
    separator: str | None = None
    decimal: str | None = None
    label_column: str | None = None
    unit = "line"

    @cached_property
    def _sample(self) -> str:
        with self._opened() as file:
            return file.read(SAMPLE_CHARACTERS)

    @cached_property
    def delimiter(self) -> str:
        """The separator: the one with which the first lines have the same number of values."""
        if self.separator is not None:
            return self.separator

        def fit(candidate: str) -> tuple[bool, bool, int]:
            header, *rows = self._sampled(candidate) or [[]]
            regular = len(header) > 1 and bool(rows) and all(len(row) == len(header) for row in rows)
            return self.label_column in [name.strip() for name in header], regular, len(header)

        return max(SEPARATORS, key=fit)

    @cached_property
    def decimal_mark(self) -> str:
        """`.` or `,`; `BadInput` if the first lines do not show which."""
        if self.decimal is not None or self.delimiter == ",":
            return self.decimal or "."
        cells = [cell.strip() for row in self._sampled(self.delimiter)[1:] for cell in row]
        commas = [cell for cell in cells if _COMMA_NUMBER.fullmatch(cell)]
        if not commas or any(map(_POINT_NUMBER.fullmatch, cells)):
            return "."
        if all(map(_THOUSANDS.fullmatch, commas)):
            raise BadInput(
                f"{self.path}: {commas[0]!r} may be a decimal fraction or thousands: set `decimal` to ',' if its comma "
                "is a decimal comma, or save the table without separators of thousands"
            )
        return ","

    def _sampled(self, separator: str) -> list[list[str]]:
        """The first rows; the last one of the sample is left out, because it may be incomplete."""
        lines = csv.reader(io.StringIO(self._sample, newline=""), delimiter=separator)
        rows: list[list[str]] = []
        with suppress(csv.Error):
            rows.extend(islice((row for row in lines if row), SAMPLE_ROWS))
        return rows[:-1] if len(rows) > 1 and len(self._sample) == SAMPLE_CHARACTERS else rows

    @contextmanager
    def _opened(self) -> Iterator[IO[str]]:
        with self.path.open("rb") as raw:
            start = raw.read(2)
            raw.seek(0)
            if start in UTF16:
                raise BadInput(f"{self.path}: not UTF-8 text but UTF-16; save the table as UTF-8")
            content: Any = gzip.GzipFile(fileobj=raw) if start == GZIP else raw
            with io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as file:
                try:
                    yield file
                except UnicodeDecodeError as error:
                    raise BadInput(f"{self.path}: not UTF-8 text ({error.reason}); save the table as UTF-8") from error
                except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                    raise BadInput(f"{self.path}: damaged gzip file ({error}); create it again") from error

    @contextmanager
    def _records(self, skip: int = 0) -> Iterator[Iterator[tuple[int, list[str]]]]:
        """The number of the last line of each record, and its values; `skip` lines are left out."""
        with self._opened() as file:
            for _ in islice(file, skip):
                pass
            lines = csv.reader(file, delimiter=self.delimiter, strict=True)
            try:
                yield ((skip + lines.line_num, cells) for cells in lines)
            except csv.Error as error:
                raise BadInput(f"{self.path}: line {skip + lines.line_num}: not valid CSV ({error})") from error

    @cached_property
    def _header(self) -> tuple[int, list[str]]:
        with self._records() as records:
            return next(records, (1, []))

    @property
    def header(self) -> list[str]:
        """The names in the first line."""
        return [name.strip() for name in self._header[1]]

    def batches(self) -> Iterator[tuple[IntArray, pl.DataFrame]]:
        """The numbers of the lines and the cells, all text, in columns called "0", "1" …; raises `BadInput`."""
        done = self._header[0]
        for lines, rows in self._split_lines(done):
            done = int(lines[-1])
            full = rows["cells"].list.len() == len(self.header)
            empty = rows["line"] == ""
            wrong = ~(full | empty) if len(self.header) > 1 else ~full
            if wrong.any():
                at = wrong.arg_max() or 0
                self._uneven(int(lines[at]), rows["cells"][at].to_list())
            keep = ~empty
            fields = [str(number) for number in range(len(self.header))]
            yield lines[keep.to_numpy()], rows.filter(keep)["cells"].list.to_struct(fields=fields).struct.unnest()
        yield from self._parsed(done)

    def _split_lines(self, skip: int) -> Iterator[tuple[IntArray, pl.DataFrame]]:
        """Lines without quotes, up to the first that polars cannot split."""
        import polars as pl  # noqa: PLC0415 - its threads must not exist before a worker is forked

        scan = pl.scan_csv(
            self.path,
            has_header=False,
            quote_char=None,
            separator=NOT_IN_TEXT,
            schema={"line": pl.String},
            empty_string_is_null=False,
            glob=False,
            row_index_name="number",
            row_index_offset=1,
        )
        try:
            for rows in scan.collect_batches(chunk_size=max(BATCH_CELLS // len(self.header), 1)):
                below = rows.filter(pl.col("number") > skip)
                if below["line"].str.contains_any(['"', "\r"]).any():
                    return
                if len(below):
                    numbers = below["number"].to_numpy().astype(np.int64)
                    yield numbers, below.with_columns(cells=pl.col("line").str.split(self.delimiter))
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
            return  # `csv` reads on, and reports what is wrong

    def _parsed(self, skip: int) -> Iterator[tuple[IntArray, pl.DataFrame]]:
        """The records after the first `skip` lines."""
        import polars as pl  # noqa: PLC0415 - see `_split_lines`

        width = len(self.header)
        with self._records(skip) as records:
            while True:
                part: list[list[str]] = []
                lines: list[int] = []
                for line, cells in islice(records, max(BATCH_CELLS // 10 // width, 1)):
                    if cells and len(cells) != width:
                        self._uneven(line, cells)
                    lines.append(line)
                    part.append(cells)
                if not lines:
                    return
                kept = [(line, cells) for line, cells in zip(lines, part, strict=True) if cells]
                columns = zip(*(cells for _, cells in kept), strict=True)
                series = {str(number): pl.Series(values, dtype=pl.String) for number, values in enumerate(columns)}
                if kept:
                    yield np.array([line for line, _ in kept], np.int64), pl.DataFrame(series)

    def _uneven(self, line: int, cells: list[str]) -> None:
        width = len(self.header)
        problem = f"{self.path}: line {line}: {len(cells)} values, but {width} columns in the header"
        if len(cells) == width + 1 and not cells[-1].strip():
            problem += f"; there is one {SEPARATORS.get(self.delimiter, 'separator')} too many at its end"
        elif len(cells) == width + 1 and line == self._header[0] + 1:
            problem += "; if the first value is the name of the row, give its column a name and set id_column to it"
        raise BadInput(problem)
