from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsim.errors import BadInput
from fedsim.learning.aggregate import model_digest
from fedsim.spool.npy import (
    MAGIC,
    MAX_HEADER_BYTES,
    check_finite,
    hash_file,
    hash_vector,
    open_array,
    open_vector,
    parse_header,
    read_header,
    write_array,
    write_vector,
)


def npy(header: str, version: tuple[int, int] = (1, 0), data: bytes = b"") -> bytes:
    text = header.encode("latin-1")
    form = "<H" if version == (1, 0) else "<I"
    return MAGIC + bytes(version) + struct.pack(form, len(text)) + text + data


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_and_nothing_else(data: bytes) -> None:
    with pytest.raises(BadInput):
        parse_header(data)


@given(st.binary(max_size=200), st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00"]))
def test_arbitrary_headers_behind_right_magic_never_crash(data: bytes, version: bytes) -> None:
    try:
        header = parse_header(MAGIC + version + data)
    except BadInput:
        return
    assert header.count >= 0


@given(
    hnp.arrays(
        dtype=st.sampled_from([np.dtype("<f4"), np.dtype("<i8"), np.dtype("|u1"), np.dtype(">f8")]),
        shape=hnp.array_shapes(min_dims=0, max_dims=4, max_side=5),
    )
)
def test_what_numpy_writes_is_understood(array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    header = parse_header(buffer.getvalue())
    assert header.dtype == array.dtype.str
    assert header.shape == array.shape
    assert header.file_size == len(buffer.getvalue())


@pytest.mark.parametrize("version", [(2, 0), (3, 0)])
def test_newer_versions_are_understood(version: tuple[int, int]) -> None:
    header = parse_header(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n", version))
    assert header.shape == (3,)


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }\n"), "plain array"),
        (npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }\n"), "plain array"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }\n"), "plain array"),
        (npy("{'descr': '<f0', 'fortran_order': False, 'shape': (3,), }\n"), "plain array"),
        (npy("__import__('os').system('true')\n"), "plain array"),
        (npy("x" * 10, (4, 0)), "version"),
        (MAGIC + b"\x02\x00" + struct.pack("<I", 2**31) + b"{", str(MAX_HEADER_BYTES)),
        (MAGIC + b"\x01\x00" + struct.pack("<H", 200) + b"{", "truncated"),
        (MAGIC + b"\x01\x00", "truncated"),
        (b"PK\x03\x04", "magic"),
    ],
)
def test_other_prefixes_are_refused_with_the_reason(prefix: bytes, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        parse_header(prefix)


def test_a_vector_comes_back_as_it_was_and_its_digest_is_that_of_the_file(tmp_path: Path) -> None:
    vector = np.random.default_rng(1).standard_normal(100_003).astype(np.float32)
    digest = write_vector(tmp_path / "a" / "v.npy", vector)
    content = (tmp_path / "a" / "v.npy").read_bytes()
    assert digest == blake3(content).hexdigest() == hash_file(tmp_path / "a" / "v.npy")
    back = open_vector(tmp_path / "a" / "v.npy", 100_003)
    assert np.array_equal(back, vector)
    assert not back.flags.writeable
    np.save(tmp_path / "numpy.npy", vector)
    assert content == (tmp_path / "numpy.npy").read_bytes()


@pytest.mark.parametrize(
    "array",
    [np.zeros(3), np.zeros((2, 2), np.float32), np.zeros(0, np.float32), np.zeros((), np.float32)],
    ids=["float64", "two dimensions", "empty", "scalar"],
)
def test_only_flat_float32_vectors_are_written(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(BadInput, match="flat float32 vector"):
        write_vector(tmp_path / "v.npy", array)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(3), "<f8"),
        (np.zeros((2, 2), np.float32), "dimensions"),
        (np.zeros(0, np.float32), "no elements"),
        (np.asfortranarray(np.zeros((2, 3), np.float32)), "column order"),
    ],
)
def test_other_arrays_are_not_opened_as_parameters(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(BadInput, match=reason):
        open_vector(tmp_path / "v.npy")


@pytest.mark.parametrize("change", [-1, 1, -4, 4])
def test_a_file_must_have_exactly_the_size_of_its_shape(tmp_path: Path, change: int) -> None:
    path = tmp_path / "v.npy"
    write_vector(path, np.ones(10, np.float32))
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(BadInput, match="but it has"):
        read_header(path)


def test_a_vector_of_another_length_than_the_model_is_refused(tmp_path: Path) -> None:
    write_vector(tmp_path / "v.npy", np.ones(10, np.float32))
    with pytest.raises(BadInput, match="10 parameters; the model has 11"):
        open_vector(tmp_path / "v.npy", 11)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1_500_000, 2_999_999])
def test_nan_and_inf_are_found_wherever_they_are(bad: float, place: int) -> None:
    vector = np.zeros(3_000_000, np.float32)
    check_finite(vector)
    vector[place] = bad
    with pytest.raises(BadInput, match=f"element {place} is"):
        check_finite(vector)


def test_test_sets_keep_their_shape(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((5, 2, 3)).astype(np.float32)
    write_array(tmp_path / "d.npy", data[:, ::-1])
    assert np.array_equal(open_array(tmp_path / "d.npy", "<f4", range(2, 5)), data[:, ::-1])
    write_array(tmp_path / "l.npy", np.arange(5, dtype=">i8"))
    assert np.array_equal(open_array(tmp_path / "l.npy", "<i8", range(1, 2)), np.arange(5))


@pytest.mark.parametrize("count", [1, 3_000_001])
def test_one_pass_gives_the_digests_of_a_model_and_of_its_file(tmp_path: Path, count: int) -> None:
    vector = np.random.default_rng(0).random(count, dtype=np.float32)
    offered = write_vector(tmp_path / "v.npy", vector)
    assert hash_vector(tmp_path / "v.npy") == (offered, model_digest(vector))
