"""Damaged files: every error is reported, and none makes a reader allocate memory."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import plugins
from fedsim.config.models import DataSetConfig
from fedsim.data import DataSet, load_dataset
from fedsim.errors import BadInput

MIB = 2**20
IMAGES = np.arange(12 * 4 * 5, dtype=np.uint8).reshape(12, 4, 5)
LABELS = np.arange(12, dtype=np.uint8) % 3


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def npz(save: Callable[..., None]) -> bytes:
    file = io.BytesIO()
    save(file, x=np.linspace(-1, 1, 30).reshape(10, 3), y=np.arange(10) % 2)
    return file.getvalue()


# What is whole: the file that is damaged, its content, what lies beside it, and how it is configured.
WHOLE: dict[str, tuple[str, bytes, dict[str, bytes], dict[str, str]]] = {
    "idx": ("it/train-images-idx3-ubyte", idx(IMAGES), {"it/train-labels-idx1-ubyte": idx(LABELS)}, {"path": "it"}),
    "idx_packed": (
        "it/train-images-idx3-ubyte.gz",
        gzip.compress(idx(IMAGES)),
        {"it/train-labels-idx1-ubyte": idx(LABELS)},
        {"path": "it", "format": "idx"},
    ),
    "npz": ("it.npz", npz(np.savez), {}, {"path": "it.npz"}),
    "npz_packed": ("it.npz", npz(np.savez_compressed), {}, {"path": "it.npz"}),
    "csv": ("it.csv", b'y,a,"b"\n1,1.5,2\n0,3,-4e3\n1,5,6\n', {}, {"path": "it.csv", "label_column": "y"}),
    "cifar10": ("it/data_batch_1.bin", bytes(3073 * 2), {}, {"path": "it"}),
}


def load(folder: Path, kind: str, content: bytes) -> DataSet:
    name, _, beside, chosen = WHOLE[kind]
    for file, what in {**beside, name: content}.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(what)
    return load_dataset(DataSetConfig.model_validate({"name": "it", **chosen}), folder)


def load_or_refuse(folder: Path, kind: str, content: bytes) -> None:
    """Fail on any error but `BadInput`, and on memory that the file's content does not justify."""
    tracemalloc.start()
    try:
        with suppress(BadInput):
            load(folder, kind, content)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 40 * MIB


@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_damaged_below_is_whole_here(tmp_path: Path, kind: str) -> None:
    assert len(load(tmp_path, kind, WHOLE[kind][1]).train) > 1


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=120)
@given(data=st.data())
def test_nothing_but_a_sentence_comes_of_a_damaged_file(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    content = bytearray(WHOLE[kind][1])
    for position, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6), label="changed"
    ):
        content[position] = byte
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)), label="cut")
    load_or_refuse(tmp_path_factory.mktemp("damaged"), kind, bytes(content[:cut]))


@pytest.mark.parametrize(
    "shape", [(2**32 - 1,) * 3, (0, 2**32 - 1, 2**32 - 1, 2**32 - 1), (2**31, 1, 1), (1, 0, 2**32 - 1), (65536,) * 4]
)
@pytest.mark.parametrize("kind", ["idx", "idx_packed"])
def test_an_idx_header_that_is_wrong_takes_no_memory(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    content = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(100)
    with pytest.raises(BadInput):
        load(tmp_path, kind, gzip.compress(content) if kind == "idx_packed" else content)


def test_a_packed_idx_file_that_promises_much_takes_only_what_it_holds(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(256, size=MIB, dtype=np.uint8).tobytes()
    load_or_refuse(tmp_path, "idx_packed", gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 10**9, 1, 1) + noise))


HEADERS = [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 10**30)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1" + b"0" * 30 + b")}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': ('a',)}",
    b"{'descr': 'S0', 'fortran_order': False, 'shape': (1" + b"0" * 15 + b",)}",
    b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), [1]: 2}",
    b"{'descr': '" + b"x" * 50 + b"'",
    b"'''",
    b"-" * 9000 + b"1",
    b"(" * 5000,
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
@pytest.mark.parametrize("version", [1, 2, 3, 9])
def test_an_array_header_that_is_nonsense_is_reported(tmp_path: Path, header: bytes, version: int) -> None:
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY" + bytes([version, 0]) + length + header + bytes(24))
    with pytest.raises(BadInput, match=r"it\.npz"):
        load(tmp_path, "npz", file.getvalue())


def test_an_encrypted_npz_is_reported(tmp_path: Path) -> None:
    content = bytearray(WHOLE["npz"][1])
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(signature, at + 1)
    with pytest.raises(BadInput, match=r"array x: is encrypted; create the file again"):
        load(tmp_path, "npz", bytes(content))


def test_an_npz_entry_that_promises_more_than_the_file_can_hold_takes_no_memory(tmp_path: Path) -> None:
    promised = 3 * 2**30
    header = io.BytesIO()
    shape = ((promised - 128) // 4,)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    assert len(header.getvalue()) == 128
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
    content = bytearray(file.getvalue())
    for signature, size in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.find(signature) + size
        content[at : at + 4] = struct.pack("<I", promised)
    with pytest.raises(BadInput, match="cannot be in such a short file"):
        load(tmp_path, "npz", bytes(content))


def test_a_table_of_very_many_columns_is_read_in_reasonable_time(tmp_path: Path) -> None:
    columns = 50_000
    header = ",".join(f"c{number}" for number in range(columns))
    content = f"y,{header}\n" + f"1,{','.join(['0.5'] * columns)}\n" * 2
    assert load(tmp_path, "csv", content.encode()).feature_shape == (columns,)


class _Broken:
    name, value = "broken", "our_lab:Gone"

    def load(self) -> object:
        raise ImportError("No module named 'our_lab'")


def test_a_broken_format_package_spoils_no_other_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins._points(plugins.FORMATS), "broken", _Broken())
    assert len(load(tmp_path, "npz", WHOLE["npz"][1]).train) == 10
    (tmp_path / "unknown").touch()
    by_its_files = DataSetConfig(name="it", path=Path("unknown"))
    for config in (by_its_files, by_its_files.model_copy(update={"format": "broken"})):
        with pytest.raises(BadInput, match=r"broken \(our_lab:Gone\) cannot be loaded: No module named 'our_lab'"):
            load_dataset(config, tmp_path)
