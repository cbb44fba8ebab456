"""The implementation of `fedsim partition` for data on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsim.config import ClientConfig, DataSetConfig, load_config
from fedsim.data import load_dataset
from fedsim.errors import BadInput, NotThere
from fedsim.learning.partition_view import PartitionView, view_partition
from fedsim.settings import SettingsError, TaskSettings, parse_settings


def view_of_file(
    settings: dict[str, Any], path: Path, dataset_format: str | None, label_column: str | None
) -> PartitionView:
    """How a task would divide a file or folder; raises `BadInput` if it cannot be read or divided so."""
    if not path.exists() and dataset_format is None:
        raise NotThere(f"{path} does not exist")
    whole = path.absolute()
    described = {"name": "given", "path": whole.name, "format": dataset_format}
    column = {} if label_column is None else {"label_column": label_column}
    config = DataSetConfig.model_validate(described | column)
    return view_partition(_checked(settings), load_dataset(config, whole.parent))


def view_of_node(settings: dict[str, Any], name: str, config: Path) -> PartitionView:
    """How a task would divide a data set of the node with this configuration, if all nodes had the same."""
    node = load_config(config, ClientConfig)
    found = next((dataset for dataset in node.datasets if dataset.name == name), None)
    if found is None:
        names = ", ".join(dataset.name for dataset in node.datasets) or "none"
        raise BadInput(f"{config} has no data set {name!r} (available: {names})")
    return view_partition(_checked(settings), load_dataset(found, node.data))


def _checked(settings: dict[str, Any]) -> TaskSettings:
    try:
        return parse_settings(settings)[0]
    except SettingsError as error:
        raise BadInput(str(error)) from error
