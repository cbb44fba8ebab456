"""IDX files, the format of MNIST and similar data sets: four files in a folder, optionally compressed with gzip.

An IDX file is two zero bytes, a type (8: unsigned byte), the number of dimensions, each dimension as four big-endian
bytes, and the values (LeCun, "The MNIST database"). A header is checked against the size of the file before it is used.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedsim.config.models import DataSetConfig
from fedsim.data.formats import Format
from fedsim.data.near_misses import FILE_NAME
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet, Examples

UNSIGNED_BYTE = 8
MAX_DIMENSIONS = 4
MAX_DEFLATE_RATIO = 1032
"""The largest compression ratio of deflate (zlib's documentation)."""
BLOCK = 2**24
"""Bytes read at a time, so that memory grows with the content, not with what a header claims."""
PIXEL_SCALE = 255.0
TEST_NAMES = frozenset({"t10k", "test"})


class Idx(Format):
    """A folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and, for testing, t10k-…; each may end in .gz."""

    title = "IDX – the files of MNIST"

    def detect(self, path: Path) -> bool:
        """Whether the folder contains a file of training images."""
        return path.is_dir() and ("train", "images") in _files(path)

    def load(self, config: DataSetConfig, path: Path, test_path: Path | None) -> DataSet:  # noqa: ARG002
        """Pixels uint8 [n, H, W], scale 255."""
        if not path.is_dir():
            raise BadInput(f"data set {config.name}: {path} is not a folder with the four IDX files")
        files = _files(path)
        train = _read_pair(path, files, "train")
        test = _read_pair(path, files, "test") if ("test", "images") in files or ("test", "labels") in files else None
        top = max(int(part.labels.max(initial=0)) for part in (train, test) if part is not None)
        return DataSet(train, test, max(top + 1, 2))


def _files(folder: Path) -> dict[tuple[str, str], Path]:
    """(train or test, images or labels) -> file."""
    found: dict[tuple[str, str], Path] = {}
    for file in sorted(folder.iterdir()):
        match = FILE_NAME.fullmatch(file.name)
        if not match or not file.is_file():
            continue
        role = ("test" if match[1].lower() in TEST_NAMES else "train", match[2].lower())
        earlier = found.setdefault(role, file)
        if earlier != file and file.name != f"{earlier.name}.gz":
            raise BadInput(f"{folder}: {earlier.name} and {file.name} are both {role[0]} {role[1]}; keep one of them")
    return found


def _read_pair(folder: Path, files: dict[tuple[str, str], Path], role: str) -> Examples:
    for part in ("images", "labels"):
        if (role, part) not in files:
            prefix = "train" if role == "train" else "t10k"
            number = 3 if part == "images" else 1
            raise BadInput(f"{folder}: the file {prefix}-{part}-idx{number}-ubyte (or with .gz) is missing")
    images, labels = files[role, "images"], files[role, "labels"]
    features, classes = read_idx(images), read_idx(labels)
    if features.ndim < 2:
        raise BadInput(f"{images}: images have at least two dimensions, this file has one: is it a file of labels?")
    if classes.ndim != 1:
        raise BadInput(f"{labels}: labels have one dimension, this file has {classes.ndim}: is it a file of images?")
    if len(features) != len(classes):
        raise BadInput(f"{images} holds {len(features)} images, but {labels} {len(classes)} labels: not of one set")
    return Examples(features, classes.astype(np.int64), PIXEL_SCALE)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes; raises `BadInput` if it does not match its header exactly."""
    size = path.stat().st_size
    try:
        with path.open("rb") as raw:
            if raw.read(2) == b"\x1f\x8b":
                raw.seek(0)
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    return _parse(unpacked, path, size * MAX_DEFLATE_RATIO)
            raw.seek(0)
            return _parse(raw, path, size)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BadInput(f"{path}: damaged gzip file ({error}); download it again") from error


def _parse(file: IO[bytes] | gzip.GzipFile, path: Path, most: int) -> NDArray[np.uint8]:
    """Parse the content; `most` is the largest possible length, against which the header is checked."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise BadInput(f"{path}: at byte 0: not an IDX file, it begins with {magic.hex(' ') or 'nothing'}")
    kind, dimensions = magic[2], magic[3]
    if kind != UNSIGNED_BYTE or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise BadInput(
            f"{path}: at byte 2: type {kind} with {dimensions} dimensions; "
            f"only unsigned bytes (type {UNSIGNED_BYTE}) with 1 to {MAX_DIMENSIONS} are read"
        )
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise BadInput(f"{path}: at byte 4: ends within its header; download it again")
    shape: tuple[Any, ...] = struct.unpack(f">{dimensions}I", sizes)
    expected = 1
    for length in shape:
        expected *= length
    content = _read(file, expected + 1) if expected <= most else bytearray()
    if len(content) != expected:
        rest = f"more than {expected}" if len(content) > expected else f"only {len(content) or 'a part'}"
        raise BadInput(f"{path}: its header says {list(shape)}, {expected} bytes, but {rest} follow; download it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read(file: IO[bytes] | gzip.GzipFile, size: int) -> bytearray:
    """Read up to `size` bytes."""
    content = bytearray()
    while part := file.read(min(BLOCK, size - len(content))):
        content += part
    return content
