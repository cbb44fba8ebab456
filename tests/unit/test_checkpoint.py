"""Checkpoints are written from mapped files, and are what the safetensors library would write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.numpy
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from fedsim.worker.checkpoint import write_safetensors

names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12)
shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)


@given(st.dictionaries(names, shapes, max_size=6), st.text(st.characters(codec="utf-8"), max_size=30))
def test_a_file_equals_the_librarys_to_the_byte(
    tmp_path_factory: object, shapes: dict[str, tuple[int, ...]], about: str
) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"  # type: ignore[attr-defined]
    digest, size = write_safetensors(path, tensors, {"fedsim": about})
    content = path.read_bytes()
    assert content == safetensors.numpy.save(tensors, metadata={"fedsim": about})
    assert (digest, size) == (blake3(content).hexdigest(), len(content))


def test_large_arrays_are_written_whole(tmp_path: Path) -> None:
    large = np.arange(3 << 20, dtype=np.float32).reshape(3, -1)  # three blocks
    write_safetensors(tmp_path / "model.safetensors", {"b": large[1:], "a": large[:1]}, {})
    read = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert np.array_equal(read["b"], large[1:])
    assert np.array_equal(read["a"], large[:1])
