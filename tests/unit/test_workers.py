"""A task's workers: what a daemon keeps of those that have ended, and what it hears of those that die."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from selectors import DefaultSelector

import psutil

from fedsim import __version__
from fedsim.config import DataSetConfig
from fedsim.worker.jobs import Inspect, Inspected
from fedsim.worker.pool import WorkerPool


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def pool(selector: DefaultSelector, *, max_restarts: int) -> WorkerPool:
    return WorkerPool(
        ["only"],
        selector,
        lambda: None,
        threads=1,
        max_restarts=max_restarts,
        log={"task": 1},
        version=__version__,
        on_death=lambda: None,
    )


def test_workers_that_have_ended_leave_no_descriptor_and_no_child() -> None:
    with DefaultSelector() as selector:
        before, children = open_descriptors(), psutil.Process().children()
        for _ in range(5):
            pool(selector, max_restarts=0).close()
        assert open_descriptors() == before
        assert not selector.get_map()
    assert psutil.Process().children() == children


def test_a_worker_killed_in_its_job_does_the_job_in_its_next_life(tmp_path: Path) -> None:
    dataset = DataSetConfig(name="digits", path=Path("digits"), format="digits")
    with DefaultSelector() as selector:
        workers = pool(selector, max_restarts=1)
        workers.give(Inspect(folder=tmp_path, datasets=(dataset,), device="cpu"))
        (key,) = selector.get_map().values()
        os.kill(key.fileobj.pid, signal.SIGKILL)  # type: ignore[union-attr]
        replies: list[object] = []
        while not replies:
            assert selector.select(60), "nothing came"
            replies, broken = workers.replies()
            assert broken is None
        assert isinstance(replies[0], Inspected)
        workers.close()


def test_a_worker_that_keeps_dying_breaks_the_task_with_the_way_it_died() -> None:
    with DefaultSelector() as selector:
        workers = pool(selector, max_restarts=0)
        (key,) = selector.get_map().values()
        os.kill(key.fileobj.pid, signal.SIGKILL)  # type: ignore[union-attr]
        assert selector.select(60)
        _, broken = workers.replies()
        assert broken is not None
        assert "Killed (signal 9)" in broken
        workers.close()
