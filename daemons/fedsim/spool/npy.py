"""`.npy` files with strict limits: the prefix of a file from a peer is parsed here before numpy reads it.

Only what numpy itself writes for plain arrays is accepted (numpy.lib.format, versions 1.0 to 3.0): no objects, no
pickle, no structured types, no column order. Arrays are read by mapping, so that memory does not grow with a model.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from fedsim.errors import BadInput, DamagedFile
from fedsim.spool.durable import replacing, write_all

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 4096
MAX_PREFIX_BYTES = 12 + MAX_HEADER_BYTES
BLOCK_BYTES = 4 << 20
FLOAT32 = "<f4"
INT64 = "<i8"
TARGETS = (INT64, FLOAT32)
TARGET_DIMENSIONS = range(1, 4)
"""What examples are to be predicted as: classes, or numbers and flags."""

_HEADER = re.compile(
    r"\{'descr': '([<>|=][a-zA-Z][1-9]\d{0,3})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,15}, ?)*(?:\d{1,15})?)\), \} *\n"
)


@dataclass(frozen=True)
class NpyHeader:
    """The header of a `.npy` file: numpy's type string, the shape, and the offset of the numbers."""

    dtype: str
    fortran_order: bool
    shape: tuple[int, ...]
    data_offset: int

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def file_size(self) -> int:
        """The size of the whole file, bytes."""
        return self.data_offset + self.count * int(self.dtype[2:])


def parse_header(prefix: bytes) -> NpyHeader:
    """Parse the first bytes of a `.npy` file (MAX_PREFIX_BYTES of them are always enough).

    Raises:
        BadInput: if it is not the plain prefix that numpy writes.
    """
    if prefix[: len(MAGIC)] != MAGIC:
        raise BadInput("it is not a .npy file: the magic bytes are missing")
    version = tuple(prefix[6:8])
    if version == (1, 0):
        form, start = "<H", 10
    elif version in {(2, 0), (3, 0)}:
        form, start = "<I", 12
    else:
        raise BadInput(f"its .npy version {version} is unknown; write version 1.0, 2.0 or 3.0")
    if len(prefix) < start:
        raise BadInput("its .npy header is truncated")
    (length,) = struct.unpack_from(form, prefix, 8)
    if length > MAX_HEADER_BYTES:
        raise BadInput(f"its .npy header has {length} bytes; at most {MAX_HEADER_BYTES} are accepted")
    text = prefix[start : start + length]
    if len(text) < length:
        raise BadInput("its .npy header is truncated")
    match = _HEADER.fullmatch(text.decode("latin-1"))
    if match is None:
        raise BadInput("its .npy header is not that of a plain array")
    shape = tuple(int(part) for part in match[3].split(",") if part.strip())
    return NpyHeader(match[1], match[2] == "True", shape, start + length)


def read_header(path: Path) -> NpyHeader:
    """The header of the file at `path`, whose size must be exactly what the header says; else `BadInput`."""
    with path.open("rb", buffering=0) as file:
        header = parse_header(file.read(MAX_PREFIX_BYTES))
        size = os.fstat(file.fileno()).st_size
    if header.fortran_order:
        raise BadInput("its numbers are in column order; write them in row order")
    if header.file_size != size:
        raise BadInput(f"its shape {header.shape} needs {header.file_size} bytes, but it has {size}")
    if header.data_offset % int(header.dtype[2:]):
        raise BadInput("its numbers are not aligned")
    return header


def open_array(
    path: Path, dtype: str | tuple[str, ...], dimensions: range
) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
    """Map the array at `path` read-only.

    Args:
        path: a `.npy` file.
        dtype: numpy's type string that it must have, such as `<f4`, or several of which it must have one.
        dimensions: how many dimensions are allowed.

    Raises:
        BadInput: if type, dimensions or size are not right, or it is empty.
    """
    header = read_header(path)
    allowed = (dtype,) if isinstance(dtype, str) else dtype
    if header.dtype not in allowed:
        raise BadInput(f"its numbers are {header.dtype}; they must be {' or '.join(allowed)}")
    if len(header.shape) not in dimensions:
        raise BadInput(
            f"it has {len(header.shape)} dimensions; allowed are {dimensions.start} to {dimensions.stop - 1}"
        )
    if header.count == 0:
        raise BadInput(f"its shape {header.shape} has no elements")
    return np.memmap(path, dtype=header.dtype, mode="r", offset=header.data_offset, shape=header.shape)


def open_vector(path: Path, length: int | None = None) -> NDArray[np.float32]:
    """Map a parameter file read-only: a flat float32 vector, of `length` numbers if that is given; else `BadInput`."""
    vector = open_array(path, FLOAT32, range(1, 2))
    if length is not None and len(vector) != length:
        raise BadInput(f"it has {len(vector)} parameters; the model has {length}")
    return vector.view(np.float32)


def check_finite(vector: NDArray[np.float32]) -> None:
    """Check a mapped array block by block; `BadInput` names the first element that is NaN or Inf."""
    flat = vector.reshape(-1)
    block = BLOCK_BYTES // 4
    for start in range(0, len(flat), block):
        finite = np.isfinite(flat[start : start + block])
        if not finite.all():
            place = start + int(np.argmin(finite))
            raise BadInput(f"element {place} is {flat[place]}; NaN and Inf are not accepted")


def write_array(path: Path, array: NDArray[np.generic]) -> str:
    """Durably write `array` as `.npy` (row order, little endian) under its final name; returns its blake3 digest."""
    # ascontiguousarray would turn a 0-d array into a 1-d one.
    data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")) if array.ndim else array
    if data.dtype.kind not in "biuf":
        raise BadInput(f"an array of {data.dtype} cannot be written; only numbers can")
    return write_parts(path, data.dtype, data.shape, [data])


def write_parts(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], parts: Iterable[NDArray[np.generic]]) -> str:
    """Durably write a `.npy` of this type and shape, whose numbers come in parts; returns its blake3 digest.

    Args:
        path: its final name.
        dtype: little endian.
        shape: of the whole array.
        parts: contiguous arrays, which together have the bytes of the whole one; only one is needed at a time.
    """
    header = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    padding = -(len(MAGIC) + 4 + len(header) + 1) % 64
    text = (header + " " * padding + "\n").encode("latin-1")
    prefix = MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text
    hasher = blake3(prefix)
    with replacing(path) as file:
        write_all(file, prefix)
        for part in parts:
            body = part.reshape(-1).view(np.uint8).data
            for start in range(0, len(body), BLOCK_BYTES):
                block = body[start : start + BLOCK_BYTES]
                hasher.update(block)
                write_all(file, block)
    return hasher.hexdigest()


def write_vector(path: Path, vector: NDArray[np.float32]) -> str:
    """Durably write a parameter file; returns its blake3 digest (64 hex digits), which a sender offers.

    Args:
        path: the final name, ending in `.npy`.
        vector: float32, shape (n,), n at least 1; may itself be mapped from a file.

    Raises:
        BadInput: if it is not such a vector. The caller checks whether it is finite.
    """
    if vector.dtype != np.float32 or vector.ndim != 1 or not len(vector):
        raise BadInput(f"parameters must be a flat float32 vector, not {vector.dtype} of shape {vector.shape}")
    return write_array(path, vector)


def hash_file(path: Path) -> str:
    """The blake3 digest of a file, read block by block."""
    hasher = blake3()
    with path.open("rb", buffering=0) as file:
        for block in _blocks(file):
            hasher.update(block)
    return hasher.hexdigest()


def check_digest(path: Path, digest: str) -> None:
    """Check that a file is the one whose digest was recorded; `DamagedFile` names it if it is not, or is missing."""
    try:
        found = hash_file(path)
    except FileNotFoundError as error:
        raise DamagedFile(path, "it is missing") from error
    if found != digest:
        raise DamagedFile(path, f"its digest is {found}, and {digest} was recorded")


def hash_vector(path: Path) -> tuple[str, str]:
    """The blake3 digests of a parameter file and of its numbers alone, in one pass; `BadInput` if it is none."""
    whole, numbers = blake3(), blake3()
    with path.open("rb", buffering=0) as file:
        whole.update(file.read(read_header(path).data_offset))
        for block in _blocks(file):
            whole.update(block)
            numbers.update(block)
    return whole.hexdigest(), numbers.hexdigest()


def _blocks(file: FileIO) -> Iterator[memoryview]:
    """The rest of a file in blocks, each valid until the next one; a small file needs no large buffer."""
    buffer = memoryview(bytearray(min(BLOCK_BYTES, os.fstat(file.fileno()).st_size + 1)))
    while count := file.readinto(buffer):
        yield buffer[:count]
