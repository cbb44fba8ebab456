"""Recognises, by the names of files, well-known data in a layout that no format reads, and says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

FILE_NAME = re.compile(r"(?:.*[-_])?(train|t10k|test)-(images|labels)[-.]idx\d-ubyte(?:\.gz)?", re.IGNORECASE)
"""The files of MNIST and the like."""
MAX_DEPTH = 3
MAX_ENTRIES = 2000
_AS_ARRAYS = "save its arrays with numpy.savez(FILE, x_train=…, y_train=…), or as a table in CSV or Parquet"
_AS_TABLE = "save the table as CSV or Parquet"
_PICKLED = f"is pickled, and nothing is ever unpickled, because that can run any program; {_AS_ARRAYS}"
_PYTHON_VERSION = (
    "is the Python version of CIFAR-10, which is pickled and never read: download the binary version, "
    "cifar-10-binary.tar.gz, and unpack it here"
)
_ENDINGS = {
    (".pkl", ".pickle", ".p", ".pt", ".pth", ".joblib"): _PICKLED,
    (".npy",): f"holds one array, but features and labels are needed; {_AS_ARRAYS}",
    (".mat", ".h5", ".hdf5", ".tfrecord", ".arff"): f"is not read; {_AS_ARRAYS}",
    (".xlsx", ".xls", ".ods"): f"is a workbook of a spreadsheet; {_AS_TABLE}",
    (
        ".sav",
        ".dta",
        ".sas7bdat",
        ".rds",
        ".rdata",
        ".feather",
        ".arrow",
        ".json",
        ".jsonl",
    ): f"is not read; {_AS_TABLE}",
    (".tar.gz", ".tgz", ".tar", ".zip", ".7z", ".tar.xz"): "is an archive; unpack it, and set `path` to its content",
    (".txt", ".data", ".dat"): "may be a table (set `format: csv`) or plain text (set `format: text`)",
}


def advice(path: Path) -> str:
    """What the files seem to be and what to do, "" if they resemble nothing known."""
    if path.is_file():
        return _of_file(path)
    found = list(_below(path))
    names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    if "data_batch_1" in names:
        return _PYTHON_VERSION
    if "data_batch_1.mat" in names:
        return _PYTHON_VERSION.replace("Python version", "Matlab version").replace("pickled and ", "")
    for file in found:
        if FILE_NAME.fullmatch(file.name) or file.name == "data_batch_1.bin":
            return f"found {file.relative_to(path)}: set `path` to the folder {file.parent.name}, below the present one"
        if file.name == "data_batch_1":
            return f"{file.parent.relative_to(path)} {_PYTHON_VERSION}"
    for file in found:
        if file.parent == path and (text := _of_file(file)):
            return f"{file.name} {text}"
    tables = [file.name for file in found if file.suffix.lower() in {".csv", ".tsv", ".npz", ".parquet"}]
    return f"it is a folder: set `path` to one file, such as {tables[0]}" if tables else ""


def _of_file(path: Path) -> str:
    name = path.name.lower()
    if FILE_NAME.fullmatch(path.name) or name.startswith("data_batch_"):
        return "is one of several files: set `path` to the folder that holds them"
    return next((text for endings, text in _ENDINGS.items() if name.endswith(endings)), "")


def _below(folder: Path) -> Iterator[Path]:
    """Files in the folder and the folders below, not endlessly many."""
    entries = 0
    folders = [(folder, 0)]
    while folders:
        here, depth = folders.pop(0)
        for entry in sorted(here.iterdir()) if here.is_dir() else ():
            entries += 1
            if entries > MAX_ENTRIES:
                return
            if entry.is_dir() and depth < MAX_DEPTH:
                folders.append((entry, depth + 1))
            elif entry.is_file():
                yield entry
