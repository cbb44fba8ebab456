"""A table in a Parquet file. A row is named by its number, from 1."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsim.data.table_text import BATCH_CELLS
from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray

if TYPE_CHECKING:
    import polars as pl

MAGIC = b"PAR1"
PANDAS_INDEX = re.compile(r"__index_level_\d+__")


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file; the index that pandas adds is no column of the table."""

    path: Path
    unit = "row"
    decimal_mark = "."

    @cached_property
    def _scan(self) -> pl.LazyFrame:
        import polars as pl  # noqa: PLC0415 - its threads must not exist before a worker is forked

        return pl.scan_parquet(self.path, glob=False)

    @cached_property
    def _names(self) -> list[str]:
        with self._reading():
            return [name for name in self._scan.collect_schema().names() if not PANDAS_INDEX.fullmatch(name)]

    @property
    def header(self) -> list[str]:
        """The names of the columns."""
        return [name.strip() for name in self._names]

    def batches(self) -> Iterator[tuple[IntArray, pl.DataFrame]]:
        """The numbers of the rows and their values, in columns called "0", "1" …; raises `BadInput`."""
        fields = {name: str(number) for number, name in enumerate(self._names)}
        done = 0
        with self._reading():
            scan = self._scan.select(self._names).rename(fields)
            for rows in scan.collect_batches(chunk_size=max(BATCH_CELLS // len(fields), 1)):
                if len(rows):
                    yield np.arange(done + 1, done + len(rows) + 1), rows
                    done += len(rows)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        import polars as pl  # noqa: PLC0415 - see `_scan`

        try:
            yield
        except FileNotFoundError:
            raise
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            reason = str(error).split("\n")[0]
            raise BadInput(f"{self.path}: not a complete Parquet file ({reason}); create it again") from error
