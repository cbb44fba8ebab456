"""How a daemon scans its data: each data set independently, and again when the folder changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from selectors import DefaultSelector

import psutil
import pytest
from lab_package import install_our_lab

from fedsim.config import DataSetConfig
from fedsim.worker import inspector
from fedsim.worker.forking import ForkServers
from fedsim.worker.inspector import Inspected, InspectionRequest, OwnData

DIGITS = DataSetConfig(name="digits", path=Path("digits"), format="digits")


class Loop:
    """A daemon's loop around its data."""

    def __init__(self) -> None:
        self.selector = DefaultSelector()
        self.seen: list[Inspected] = []
        self.servers = ForkServers(self.selector)
        self.data = OwnData(self.servers, self.seen.append)

    def until(self, enough: Callable[[], bool], *, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not enough():
            assert time.monotonic() < deadline, f"waited in vain; seen: {self.seen}"
            for key, _ in self.selector.select(max(0.0, min(self.data.wake_at - time.monotonic(), 1.0))):
                key.data()
            self.data.tick()


@pytest.fixture
def loop() -> Iterator[Loop]:
    others = psutil.Process().children()  # a database of other tests
    loop = Loop()
    yield loop
    loop.data.close()
    loop.servers.close()
    assert not loop.selector.get_map(), "nothing stays registered"
    loop.selector.close()
    assert psutil.Process().children() == others


def test_every_data_set_fails_for_itself_whatever_it_does_to_the_worker(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_our_lab(tmp_path / "installed", monkeypatch)
    (tmp_path / "bad.csv").write_text("y,a\n1,x\n")
    (tmp_path / "bad.npz").write_bytes(b"PK")
    # Only the worker's Python has these formats.
    odd = [DIGITS.model_copy(update={"name": name, "format": name}) for name in ("raising", "killing", "hanging_up")]
    bad = [DataSetConfig(name="table", path=Path("bad.csv"), label_column="y")]
    bad += [DataSetConfig(name="zip", path=Path("bad.npz"))]
    loop.data.inspect(InspectionRequest(tmp_path, (*odd, DIGITS, *bad), "cpu"))
    loop.until(lambda: bool(loop.seen))
    (seen,) = loop.seen
    assert [info.name for info in seen.datasets] == ["digits"]
    assert seen.unusable["raising"] == "ValueError: a row is upside down"
    assert "killed by Killed (signal 9)" in seen.unusable["killing"]
    assert "killed" in seen.unusable["hanging_up"]
    assert "line 2: column a: 'x'" in seen.unusable["table"]
    assert "not a complete .npz" in seen.unusable["zip"]


def test_data_that_is_written_all_the_time_is_seen_and_reported(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector, "MOST_SETTLE_SECONDS", 1.5)
    loop.data.inspect(InspectionRequest(tmp_path, (DIGITS,), "cpu"))
    remarks: list[str] = []

    def write_and_ask() -> bool:
        (tmp_path / "growing.csv").write_text("one more line")
        remarks.extend(loop.data.remarks)
        return len(loop.seen) == 2

    loop.until(write_and_ask)
    assert [len(seen.datasets) for seen in loop.seen] == [1, 1]
    assert any("growing.csv changed since the data sets were inspected" in remark for remark in remarks)
    loop.until(lambda: len(loop.seen) > 2 and not loop.data.remarks)


def test_a_look_that_lasts_holds_nothing_up(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_our_lab(tmp_path / "installed", monkeypatch)
    slow = tmp_path / "slow"
    os.mkfifo(slow)
    loop.data.inspect(
        InspectionRequest(
            tmp_path, (DIGITS.model_copy(update={"name": "slow", "path": Path("slow"), "format": "waiting"}),), "cpu"
        )
    )
    readers: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):  # nothing reads yet
            readers.append(os.open(slow, os.O_WRONLY | os.O_NONBLOCK))
        return bool(readers)

    loop.until(is_read)
    os.write(readers[0], b"a row at last")
    os.close(readers[0])
    loop.until(lambda: bool(loop.seen))
    assert loop.seen[0].unusable == {"slow": "ValueError: a row at last"}


def test_other_data_sets_are_looked_at_at_once(loop: Loop, tmp_path: Path) -> None:
    missing = DataSetConfig(name="missing", path=Path("missing"))
    loop.data.inspect(InspectionRequest(tmp_path, (DIGITS, missing), "cpu"))
    loop.data.inspect(InspectionRequest(tmp_path, (missing,), "cpu"))
    loop.until(lambda: bool(loop.seen))
    assert [dict(seen.unusable).keys() for seen in loop.seen] == [{"missing"}]


def test_a_device_that_is_not_there_takes_all_data_sets_with_one_reason(loop: Loop, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    loop.data.inspect(InspectionRequest(tmp_path, (DIGITS, DIGITS.model_copy(update={"name": "again"})), "cuda"))
    loop.until(lambda: bool(loop.seen))
    (seen,) = loop.seen
    assert seen.datasets == ()
    (problem,) = seen.problems
    assert problem.startswith("data set digits, again: client.yml asks for a GPU")
