"""Tables: a header with the names of the columns, an example in each line, a column with the label.

Scaling and the replacement of missing values are determined from the training file only, and then applied to the test
file and to examples for prediction.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fedsim import plugins
from fedsim.config.models import DataSetConfig
from fedsim.data.formats import Format
from fedsim.data.schema import table_schema
from fedsim.data.split import split_indices
from fedsim.data.table_layout import TableLayout, Values
from fedsim.data.table_options import TableOptions, TextOptions, composed
from fedsim.data.table_parquet import MAGIC, ParquetTable
from fedsim.data.table_scaling import Preparation, prepare
from fedsim.data.table_text import TextTable
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet, Examples, FloatArray, IntArray, numbered
from fedsim.plugins import PluginOptions


class Table(Format):
    """Base of the formats of tables."""

    Options: ClassVar[type[PluginOptions]] = TableOptions
    uses_test_path = True
    options: Any

    def load(self, config: DataSetConfig, path: Path, test_path: Path | None) -> DataSet:
        """float32 [n, columns], in the order of the training file's columns."""
        table, rows, test_rows, preparation = self._trained(config, path)
        kind = self.options.targets
        clients = None if table.clients is None else table.clients[rows]
        train = Examples(preparation.apply(table.values, rows), table.labels[rows], targets=kind, clients=clients)
        test = None
        if test_path is not None:
            other = self._read(config, test_path, table.columns)
            test = Examples(preparation.apply(other.values), other.labels, targets=kind)
        elif test_rows is not None:
            test = Examples(preparation.apply(table.values, test_rows), table.labels[test_rows], targets=kind)
        if kind != "classes":
            outputs = len(self.options.target_columns)
            return DataSet(
                train, test, outputs, table_schema(f"data set {config.name}", self.options, table.columns, outputs)
            )
        top = max(int(part.labels.max(initial=0)) for part in (train, test) if part is not None)
        num_classes = max(top + 1, max(self.options.labels.values(), default=0) + 1, 2)
        schema = table_schema(f"data set {config.name}", self.options, table.columns, num_classes)
        return DataSet(train, test, num_classes, schema)

    def load_features(self, config: DataSetConfig, path: Path, file: Path) -> FloatArray:
        """A table without labels, prepared like the training file: float32 [n, columns]; raises `BadInput`."""
        table, _, _, preparation = self._trained(config, path)
        return preparation.apply(self._read(config, file, table.columns, with_labels=False).values)

    def training_values(self, config: DataSetConfig, path: Path) -> tuple[list[str], Values]:
        """The feature columns of the training rows as read: names, and float64 [n, columns] with NaN for no value."""
        table, rows, _, _ = self._trained(config, path)
        return table.columns, table.values[rows]

    def header(self, file: Path) -> list[str]:
        """The names of the columns of a file; raises `BadInput`."""
        return [composed(name) for name in self._open(file).header]

    def labels(self, config: DataSetConfig, file: Path) -> Any:
        """The classes of a table, int64 [n]; every line needs one. Raises `BadInput`."""
        options = self.options.model_copy(update={"missing": "mean"})
        return type(self)(options)._read(config, file).labels  # noqa: SLF001 - of this class

    def all_columns(self, file: Path) -> FloatArray:
        """A table that has only features: float32 [n, columns], in the order of its columns; raises `BadInput`."""
        config = DataSetConfig(name="given", path=Path(file.name))
        return self._read(config, file, self.header(file), with_labels=False).values.astype(np.float32)

    def _trained(
        self, config: DataSetConfig, path: Path
    ) -> tuple[_Rows, IntArray | slice, IntArray | None, Preparation]:
        """The training file, its rows for training and for testing, and the preparation found on the former."""
        table = self._read(config, path)
        rows: IntArray | slice = slice(None)
        test_rows = None
        if config.test_path is None and config.test_share is not None:
            rows, test_rows = split_indices(len(table.labels), config.test_share, str(path))
        return (
            table,
            rows,
            test_rows,
            prepare(self.options, f"data set {config.name}", path, (table.columns, table.values), rows),
        )

    def _open(self, path: Path) -> TextTable | ParquetTable:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                return ParquetTable(path)
        options = self.options if isinstance(self.options, TextOptions) else TextOptions()
        return TextTable(path, options.separator, options.decimal, next(iter(self.options.target_columns), None))

    def _read(
        self, config: DataSetConfig, path: Path, wanted: list[str] | None = None, *, with_labels: bool = True
    ) -> _Rows:
        """Read a file; `wanted` are the required feature columns (in any order), None for all."""
        source = self._open(path)
        layout = TableLayout.find(self.options, f"data set {config.name}", source, wanted, with_labels=with_labels)
        classes = self.options.targets == "classes"
        values, labels = array("d"), array("q" if classes or not with_labels else "d")
        names: list[str] = []
        for lines, cells in source.batches():
            rows, found, of_clients = layout.read(lines, cells)
            names += of_clients
            values.frombytes(rows.tobytes())
            labels.frombytes(found.tobytes())
        if not labels:
            raise BadInput(f"{path}: it contains no examples; each needs a {source.unit} below the header")
        matrix = np.frombuffer(values).reshape(-1, len(layout.columns))
        clients = numbered(names) if names else None
        if labels.typecode == "d":
            numbers = np.frombuffer(labels).reshape(len(matrix), -1).astype(np.float32)
            return _Rows(layout.columns, matrix, numbers, clients)
        return _Rows(layout.columns, matrix, np.frombuffer(labels, np.int64), clients)


class Csv(Table):
    """A table in text, .csv, .tsv or .tab, also compressed as .gz; `label_column` is required."""

    title = "CSV, TSV – a table"
    Options = TextOptions

    def detect(self, path: Path) -> bool:
        """Whether the file ends in .csv, .tsv or .tab, or in one of them and .gz."""
        ending = "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()
        return path.is_file() and ending.removesuffix(".gz") in {".csv", ".tsv", ".tab"}


class Parquet(Table):
    """A table in a Parquet file; `label_column` is required."""

    title = "Parquet – a table"

    def detect(self, path: Path) -> bool:
        """Whether the file ends in .parquet or .pq."""
        return path.is_file() and path.suffix.lower() in {".parquet", ".pq"}


def is_table(name: str | None, path: Path) -> bool:
    """Whether a file is a table, by its format or else its name."""
    if name is None:
        return Csv().detect(path) or Parquet().detect(path)
    return name in plugins.names(plugins.FORMATS) and issubclass(plugins.load(plugins.FORMATS, name), Table)


@dataclass(frozen=True)
class _Rows:
    """The file's feature columns, float64 [n, columns] with NaN where a value is missing, its labels and clients."""

    columns: list[str]
    values: Values
    labels: Any
    clients: IntArray | None
