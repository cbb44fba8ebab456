"""NumPy's `.npz` archives, the format of Keras's data sets. Nothing is unpickled, and headers are checked first."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import Field

from fedsim.config.models import DataSetConfig
from fedsim.data.formats import Format
from fedsim.data.idx import MAX_DEFLATE_RATIO
from fedsim.data_schema import NAMED_TARGETS, Targets
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet, Examples, IntArray, numbered
from fedsim.plugins import PluginOptions

PIXEL_SCALE = 255.0
# Names of arrays: the first that exists is used.
TRAIN_FEATURES = ("x_train", "train_features", "train_images", "features", "x")
TRAIN_LABELS = ("y_train", "train_labels", "labels", "y")
TEST_FEATURES = ("x_test", "test_features", "test_images")
TEST_LABELS = ("y_test", "test_labels")
CLIENTS = ("clients_train", "train_clients", "clients")
ENCRYPTED = 1
"""The flag of an encrypted ZIP entry."""
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
NO_LITERAL = (TypeError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError)
"""Exceptions of `ast.literal_eval` that numpy does not convert to ValueError for an invalid header."""
COLOURS = frozenset({1, 3, 4})


class Npz(Format):
    """One file with the arrays x_train, y_train and, for testing, x_test, y_test.

    Also supported are train_features or train_images, train_labels, test_features or test_images, test_labels, and
    features, labels (or x, y) in a file without a test set. `test_path` can name a separate file for the test set.
    The array clients (or clients_train, train_clients) names the client of each training example, as text or number.
    """

    class Options(PluginOptions):
        """What the labels are."""

        targets: Targets = Field(
            "classes",
            title="targets",
            description="What the labels are: classes [n], tokens [n, length], a mask of classes [n, height, width], "
            "numbers [n, k] or flags [n, k]; of numbers and flags k is 1 if there is no second dimension",
        )

    options: Options

    title = "npz – arrays of NumPy"
    uses_test_path = True

    def detect(self, path: Path) -> bool:
        """Whether the file ends in .npz."""
        return path.is_file() and path.suffix.lower() == ".npz"

    def load(self, config: DataSetConfig, path: Path, test_path: Path | None) -> DataSet:  # noqa: ARG002
        """uint8 features are pixels (scale 255), all others become float32; classes are whole numbers."""
        kind = self.options.targets
        arrays = read_npz(path)
        train = _examples(arrays, TRAIN_FEATURES, TRAIN_LABELS, path, kind)
        train = replace(train, clients=_clients(arrays, len(train), path))
        test = None
        if test_path is not None:
            names = TEST_FEATURES + TRAIN_FEATURES, TEST_LABELS + TRAIN_LABELS
            test = _examples(read_npz(test_path), *names, test_path, kind)
        elif any(name in arrays for name in TEST_FEATURES + TEST_LABELS):
            test = _examples(arrays, TEST_FEATURES, TEST_LABELS, path, kind)
        if kind in NAMED_TARGETS:
            return DataSet(train, test, train.labels.shape[1])
        top = max(int(part.labels.max(initial=0)) for part in (train, test) if part is not None)
        # Each token can be one that is predicted, and is then an input.
        top = max(top, int(train.features.max(initial=0))) if kind == "tokens" else top
        return DataSet(train, test, max(top + 1, 2))


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of the archive; raises `BadInput` if one is damaged, an object, or of the wrong length."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                entry.filename.removesuffix(".npy"): _read_entry(archive, entry, path)
                for entry in archive.infolist()
                if entry.filename.endswith(".npy")
            }
    except (*DAMAGED, ValueError, OverflowError) as error:  # zipfile does not convert errors from invalid numbers
        raise BadInput(f"{path}: not a complete .npz file ({error}); create it again with numpy.savez") from error


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    place = f"{path}: array {entry.filename.removesuffix('.npy')}"
    if entry.flag_bits & ENCRYPTED or entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        how = "encrypted" if entry.flag_bits & ENCRYPTED else "compressed with a method that numpy does not use"
        raise BadInput(f"{place}: is {how}; create the file again with numpy.savez")
    if entry.file_size > path.stat().st_size * MAX_DEFLATE_RATIO:
        raise BadInput(f"{place}: {entry.file_size} bytes cannot be in such a short file; create it again")
    try:
        with archive.open(entry) as stream:
            shape, dtype = _read_header(stream)
            header = stream.tell()
        stated = prod(shape) * dtype.itemsize
        if not dtype.hasobject and (min(shape, default=0) < 0 or stated != entry.file_size - header):
            raise BadInput(f"{place}: its header says {stated} bytes, not {entry.file_size - header}; create it again")
        with archive.open(entry) as stream:
            return np.asarray(npy.read_array(stream, allow_pickle=False))
    except (ValueError, OverflowError) as error:
        raise BadInput(f"{place}: {error}; save plain numbers with numpy.savez") from error


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and type; raises `ValueError` if it is not a valid header."""
    version = npy.read_magic(stream)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, _, dtype = read_header(stream)
    except NO_LITERAL as error:
        raise ValueError(f"its header cannot be read ({type(error).__name__})") from error
    return shape, dtype


def _examples(
    arrays: dict[str, NDArray[Any]],
    features: tuple[str, ...],
    labels: tuple[str, ...],
    path: Path,
    kind: Targets = "classes",
) -> Examples:
    found: list[NDArray[Any]] = []
    for names in (features, labels):
        name = next((name for name in names if name in arrays), None)
        if name is None:
            unnamed = "; save arrays with names, numpy.savez(FILE, x_train=…, y_train=…)" if "arr_0" in arrays else ""
            available = ", ".join(arrays) or "none"
            raise BadInput(f"{path}: no array {' or '.join(names)} (available: {available}){unnamed}")
        found.append(arrays[name])
    values, classes = plain_features(found[0], path), found[1]
    scale = PIXEL_SCALE if values.dtype == np.uint8 and kind != "tokens" else 1.0
    if kind in NAMED_TARGETS:
        return Examples(values, _numbers(classes, len(values), path), scale, kind)
    if classes.dtype.kind not in "iu":
        raise BadInput(
            f"{path}: labels are {classes.dtype}, they must be whole numbers: the class of each example; "
            "if they are something else, say what with `targets`"
        )
    if kind != "classes":
        return Examples(values, classes.astype(np.int64), scale, kind)
    if classes.ndim == 2 and classes.shape[1] == 1:
        classes = classes[:, 0]
    if classes.ndim != 1 or len(classes) != len(values):
        raise BadInput(
            f"{path}: labels have the shape {list(classes.shape)}, features {list(values.shape)}; one label for each"
        )
    return Examples(values, classes.astype(np.int64), scale)


def _clients(arrays: dict[str, NDArray[Any]], count: int, path: Path) -> IntArray | None:
    """To which client each training example belongs, int64 [n], if the file has such an array."""
    name = next((name for name in CLIENTS if name in arrays), None)
    if name is None:
        return None
    found = arrays[name]
    if found.dtype.kind not in "iuUS" or found.shape != (count,):
        raise BadInput(
            f"{path}: array {name} is {found.dtype} {list(found.shape)}; it must be the text or the whole number of "
            f"each example's client, [{count}]"
        )
    return numbered(found)


def _numbers(array: NDArray[Any], count: int, path: Path) -> NDArray[np.float32]:
    """Numbers or flags, float32 [n, k]."""
    columns = array[:, None] if array.ndim == 1 else array
    if array.dtype.kind not in "biuf" or columns.ndim != 2 or len(columns) != count:
        raise BadInput(f"{path}: labels are {array.dtype} {list(array.shape)}; they must be numbers, [{count}, k]")
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which is reported with its position
        return np.ascontiguousarray(columns, np.float32)


def plain_features(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """Keep uint8, convert other numbers to float32, and move the colour channels of images to [n, C, H, W]."""
    if array.ndim < 2 or array.dtype.kind not in "biuf":
        raise BadInput(f"{path}: features are {array.dtype} {list(array.shape)}; they must be numbers, [examples, …]")
    if array.ndim == 4 and array.shape[3] in COLOURS and array.shape[1] not in COLOURS:
        array = np.moveaxis(array, 3, 1)
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which is reported with its position
        return np.ascontiguousarray(array, dtype=np.uint8 if array.dtype == np.uint8 else np.float32)


def read_features(path: Path) -> NDArray[Any]:
    """Read features without labels, from an `.npz` (x_test, test_features, features or x) or an `.npy`."""
    if path.suffix.lower() == ".npz":
        arrays = read_npz(path)
        name = next((name for name in TEST_FEATURES + TRAIN_FEATURES[3:] if name in arrays), None)
        if name is None:
            raise BadInput(f"{path}: no array features or x (available: {', '.join(arrays) or 'none'})")
        return plain_features(arrays[name], path)
    try:
        return plain_features(np.asarray(np.load(path, allow_pickle=False, mmap_mode="r")), path)
    except (ValueError, EOFError) as error:
        raise BadInput(f"{path}: neither .csv, .npz nor .npy with plain numbers ({error})") from error
