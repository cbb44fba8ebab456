"""Checks of data formats, with a valid sample of their files, and with copies of it that are damaged."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedsim import plugins
from fedsim.config import DataSetConfig
from fedsim.data import DataSet, load_dataset
from fedsim.data.formats import Format
from fedsim.data.load import dataset_digest
from fedsim.errors import BadInput
from fedsim.testing.conformance.candidate import Candidate, require

DAMAGES = 40
"""Copies with some changed bytes."""


def _load(candidate: Candidate, path: Path) -> DataSet:
    """The data set in a file or folder, read and checked as a node does it."""
    with candidate.installed(plugins.FORMATS) as name:
        config = DataSetConfig.model_validate(
            {"name": "sample", **candidate.dataset, "path": path.name, "format": name}
        )
        return load_dataset(config, path.parent)


@contextmanager
def _copy(candidate: Candidate) -> Iterator[Path]:
    """A copy of the sample; of a format without files, a path that does not exist."""
    with tempfile.TemporaryDirectory(prefix="fedsim-") as folder:
        if candidate.sample is None:
            yield Path(folder) / "sample"
            return
        path = Path(folder) / candidate.sample.name
        if candidate.sample.is_dir():
            shutil.copytree(candidate.sample, path)
        else:
            shutil.copy(candidate.sample, path)
        yield path


def _files(path: Path) -> list[Path]:
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in found if file.is_file()]


def options_can_be_keys(candidate: Candidate) -> None:
    """No option has the name of a key that every data set in `client.yml` has, because options are keys there, too."""
    taken = sorted(candidate.plugin.Options.model_fields.keys() & DataSetConfig.model_fields.keys())
    require(not taken, f"the options {', '.join(taken)} have names of keys that every data set has")


def recognises_its_files(candidate: Candidate) -> None:
    """`detect` returns true for the sample, and false for other files."""
    form: Format = candidate.make()
    with tempfile.TemporaryDirectory(prefix="fedsim-") as folder:
        other = Path(folder) / "notes.txt"
        other.write_text("These are notes.", encoding="utf-8")
        for path in (Path(folder), other):
            require(not form.detect(path), f"a {'folder' if path.is_dir() else 'file'} with notes is recognised")
    if candidate.sample is not None:
        require(form.detect(candidate.sample), f"the sample {candidate.sample.name} is not recognised")


def loads_deterministically(candidate: Candidate) -> None:
    """The same files, read twice, give the same examples."""
    with _copy(candidate) as path:
        one, two = _load(candidate, path), _load(candidate, path)
        require(dataset_digest(one) == dataset_digest(two), "the same files, read twice, gave different examples")


def gives_valid_examples(candidate: Candidate) -> None:
    """Features are numbers, labels are int64 from 0, and a part of the examples is the same as in the whole."""
    with _copy(candidate) as path:
        dataset = _load(candidate, path)
    for examples in (dataset.train, dataset.test):
        if examples is None:
            continue
        require(examples.labels.dtype == np.int64, f"labels are {examples.labels.dtype}; they must be int64")
        require(examples.features.dtype in (np.uint8, np.float32), f"features are {examples.features.dtype}")
        whole = examples.take(slice(None))
        part = examples.take(np.arange(len(examples))[1::2])
        require(np.array_equal(part, whole[1::2]), "some of the examples, taken alone, have other features")


def only_reads_its_files(candidate: Candidate) -> None:
    """Loading changes no file and adds none."""
    with _copy(candidate) as path:
        before = {file: file.read_bytes() for file in _files(path.parent)}
        _load(candidate, path)
        after = {file: file.read_bytes() for file in _files(path.parent)}
        require(before == after, "loading changes the files")


def a_short_file_is_named(candidate: Candidate) -> None:
    """A file that is cut off or empty raises `BadInput` with its name, if it cannot be read."""
    for number in range(len(_files(candidate.sample)) if candidate.sample else 0):
        for share in (0.0, 0.3, 0.6, 0.99):
            with _copy(candidate) as path:
                file = _files(path)[number]
                file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
                _expect_a_name(candidate, path, file.name, f"{file.name}, cut off at {share:.0%},")


def damage_is_named(candidate: Candidate) -> None:
    """Changed bytes give other examples, or `BadInput` with the path; no other exception."""
    rng = np.random.default_rng(4)
    for number in range(len(_files(candidate.sample)) if candidate.sample else 0):
        for _ in range(DAMAGES):
            with _copy(candidate) as path:
                file = _files(path)[number]
                content = bytearray(file.read_bytes())
                # Most formats begin with a header, in which a change does the most harm.
                end = len(content) if rng.random() < 0.5 else min(len(content), 64)
                for position in rng.integers(end, size=3):
                    content[position] = rng.integers(256)
                file.write_bytes(content)
                _expect_a_name(candidate, path, path.name, f"{file.name} with changed bytes")


def _expect_a_name(candidate: Candidate, path: Path, name: str, what: str) -> None:
    try:
        _load(candidate, path)
    except BadInput as error:
        require(name in str(error), f"{what} is reported without its name: {error}")
    except Exception as error:  # noqa: BLE001 - what the check is about
        require(condition=False, problem=f"{what} raises {type(error).__name__}: {error}; raise BadInput")


def a_wrong_line_is_named(candidate: Candidate) -> None:
    """In a file of lines of text, a line that makes no sense raises `BadInput` with the file and the line."""
    for number in range(len(_files(candidate.sample)) if candidate.sample else 0):
        with _copy(candidate) as path:
            file = _files(path)[number]
            try:
                lines = file.read_bytes().decode().splitlines()
            except UnicodeDecodeError:
                continue
            if len(lines) < 3:
                continue
            wrong = len(lines) // 2
            lines[wrong] = "!!!"
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
            try:
                _load(candidate, path)
            except BadInput as error:
                named = file.name in str(error) and re.search(rf"\b{wrong + 1}\b", str(error))
                require(named, f"a wrong line {wrong + 1} of {file.name} is reported as: {error}")
            else:
                require(condition=False, problem=f"the wrong line {wrong + 1} of {file.name} is read without an error")


CHECKS = (
    options_can_be_keys,
    recognises_its_files,
    loads_deterministically,
    gives_valid_examples,
    only_reads_its_files,
    a_short_file_is_named,
    damage_is_named,
    a_wrong_line_is_named,
)
