"""Data formats: their base class, and the lookup of installed ones."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from fedsim import plugins
from fedsim.config.models import DataSetConfig
from fedsim.data import near_misses
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet
from fedsim.plugins import Plugin

FOLDERS = frozenset({"idx", "cifar10"})
"""Formats whose files are recognised by their names alone."""


class Format(Plugin):
    """The base of all data formats: reads one kind of files.

    Attributes:
        uses_test_path: whether `test_path` may name a separate file with the test set.
    """

    uses_test_path: ClassVar[bool] = False

    def detect(self, path: Path) -> bool:
        """Whether the file or folder is in this format, according to names of files."""
        raise NotImplementedError

    def load(self, config: DataSetConfig, path: Path, test_path: Path | None) -> DataSet:
        """Read the examples. `path` and `test_path` are `config`'s, inside the data folder.

        Raises:
            BadInput: with the file, the position in it, and what is expected.
        """
        raise NotImplementedError


def find_format(config: DataSetConfig, path: Path) -> Format:
    """Return the format that the configuration names, or else the one that detects the files.

    Raises:
        BadInput: the format is unknown, none matches, or the configuration has options that the format does not have.
    """
    name = config.format or _detect(config, path)
    found: Format = plugins.make(plugins.FORMATS, name, config.format_options)
    if name in FOLDERS and path.exists() and not found.detect(path) and (near := near_misses.advice(path)):
        raise BadInput(f"data set {config.name}: {path}: {near}")
    if config.test_path is not None and not found.uses_test_path:
        raise BadInput(f"data set {config.name}: the format {name} does not use test_path; remove it")
    return found


def _detect(config: DataSetConfig, path: Path) -> str:
    if not path.exists():
        raise BadInput(f"data set {config.name}: {path} does not exist; copy its files there, or correct `path`")
    loaded, broken = _load_all()
    fitting = [name for name, candidate in loaded.items() if candidate.detect(path)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting and (near := near_misses.advice(path)):
        raise BadInput(f"data set {config.name}: {path}: {near}")
    problem = f"its files match {' and '.join(fitting)}" if fitting else "its files match no known format"
    also = "".join(f"; {why}" for why in broken)
    known = ", ".join(plugins.names(plugins.FORMATS))
    raise BadInput(f"data set {config.name}: {path}: {problem}; set `format` to one of {known}{also}")


def _load_all() -> tuple[dict[str, Format], list[str]]:
    """The formats by name, and why others cannot be loaded: a broken package does not affect other formats."""
    loaded, broken = {}, []
    for name in plugins.names(plugins.FORMATS):
        try:
            loaded[name] = plugins.make(plugins.FORMATS, name, {})
        except BadInput as error:
            broken.append(str(error))
    return loaded, broken
