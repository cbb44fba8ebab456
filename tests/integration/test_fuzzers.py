"""A short run of each fuzzer of `make fuzz`; and a fuzzer finds a fault that is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import parsers
import pytest

import fuzz

needs_atheris = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")


@pytest.mark.parametrize("name", fuzz.NAMES)
def test_each_seed_is_read_without_an_unexpected_error(name: str) -> None:
    assert set(fuzz.NAMES) == set(parsers.TARGETS) == set(parsers.SEEDS)
    for seed in parsers.SEEDS[name]():
        for end in range(0, len(seed) + 1, max(len(seed) // 50, 1)):
            parsers.TARGETS[name](seed[:end])


@needs_atheris
def test_fuzzers_find_nothing_in_a_few_thousand_inputs(tmp_path: Path) -> None:
    assert fuzz.main(["--runs", "500", "--folder", str(tmp_path)]) == 0


@needs_atheris
def test_a_fuzzer_finds_a_parser_that_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a `parsers` whose npy parser has the fault of reading a number before it checks the length."""
    broken = "import struct\nTARGETS = {'npy': lambda data: struct.unpack_from('<H', data, 8)}\n"
    (tmp_path / "parsers.py").write_text(broken)
    (tmp_path / "fuzz.py").write_bytes(Path(fuzz.__file__).read_bytes())
    monkeypatch.setattr(fuzz, "HERE", tmp_path)
    assert fuzz.main(["--runs", "2000", "--folder", str(tmp_path / "found"), "npy"]) == 1
    assert list((tmp_path / "found" / "npy").glob("crash-*"))
    assert "unpack_from requires" in capsys.readouterr().out
