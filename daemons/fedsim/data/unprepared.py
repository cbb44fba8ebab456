"""The numbers of a table as they are in its file, for statistics: not scaled, and with NaN where a value is missing."""

from __future__ import annotations

from pathlib import Path

from fedsim.config.models import DataSetConfig
from fedsim.data.formats import find_format
from fedsim.data.load import find_path, load_dataset
from fedsim.data.split import held_out_rows
from fedsim.data.table import Table
from fedsim.data.table_layout import Values


def unprepared_columns(config: DataSetConfig, folder: Path) -> tuple[tuple[str, ...], Values] | None:
    """The feature columns of a table's training examples; None for data that is no table.

    Returns:
        Their names, and float64 [n, columns] in the order of the training examples that `load_dataset` returns.

    Raises:
        BadInput: as `load_dataset`.
    """
    path = find_path(folder, config.path)
    form = find_format(config, path)
    if not isinstance(form, Table):
        return None
    names, values = form.training_values(config, path)
    if config.validation_share is not None and config.access == "open":
        whole = load_dataset(config.model_copy(update={"validation_share": None}), folder).train
        values = values[~held_out_rows(whole, config.validation_share)]
    return tuple(names), values
