"""Data formats: their base class, and the lookup of installed ones."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from fedsim import plugins
from fedsim.config.models import DataSetConfig
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet
from fedsim.plugins import Plugin


class Format(Plugin):
    """The base of all data formats: reads one kind of files.

    Attributes:
        keys: the keys of a data set in `client.yml` that the format uses, in addition to name, path, format, share
            and test_share, which every format has.
    """

    keys: ClassVar[frozenset[str]] = frozenset()

    def detect(self, path: Path) -> bool:
        """Whether the file or folder is in this format, according to names of files."""
        raise NotImplementedError

    def load(self, config: DataSetConfig, path: Path, test_path: Path | None) -> DataSet:
        """Read the examples. `path` and `test_path` are `config`'s, inside the data folder.

        Raises:
            BadInput: with the file, the position in it, and what is expected.
        """
        raise NotImplementedError


FORMAT_KEYS = ("test_path", "label_column", "id_column", "scale", "scale_values", "missing", "labels")


def find_format(config: DataSetConfig, path: Path) -> Format:
    """Return the format that the configuration names, or else the one that detects the files.

    Raises:
        BadInput: the format is unknown, none matches, or the configuration has keys that the format does not support.
    """
    known = ", ".join(plugins.names(plugins.FORMATS))
    if config.format is not None:
        name = config.format
        chosen = _load(name)
    elif not path.exists():
        raise BadInput(f"data set {config.name}: {path} does not exist; copy its files there, or correct `path`")
    else:
        loaded, broken = _load_all()
        fitting = [name for name, candidate in loaded.items() if candidate.detect(path)]
        if len(fitting) != 1:
            problem = f"its files match {' and '.join(fitting)}" if fitting else "its files match no known format"
            also = "".join(f"; {why}" for why in broken)
            raise BadInput(f"data set {config.name}: {path}: {problem}; set `format` to one of {known}{also}")
        name = fitting[0]
        chosen = loaded[name]
    fields = DataSetConfig.model_fields
    unknown = [
        option
        for option in FORMAT_KEYS
        if option not in chosen.keys and getattr(config, option) != fields[option].default
    ]
    if unknown:
        raise BadInput(f"data set {config.name}: the format {name} does not use {', '.join(unknown)}; remove it")
    return chosen


def _load(name: str) -> Format:
    chosen: Format = plugins.make(plugins.FORMATS, name, {})
    return chosen


def _load_all() -> tuple[dict[str, Format], list[str]]:
    """The formats by name, and why others cannot be loaded: a broken package does not affect other formats."""
    loaded, broken = {}, []
    for name in plugins.names(plugins.FORMATS):
        try:
            loaded[name] = _load(name)
        except BadInput as error:
            broken.append(str(error))
    return loaded, broken
