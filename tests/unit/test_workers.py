"""A task's workers: what a daemon keeps of those that have ended, and what it hears of those that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from selectors import DefaultSelector

import psutil
import pytest
import torch

from fedsim import __version__
from fedsim.errors import BadInput
from fedsim.settings import TaskSettings
from fedsim.worker import host_jobs
from fedsim.worker.__main__ import Worker
from fedsim.worker.jobs import Aggregate, HostInspected, InspectHost, JobFailed, Reply, WeightedFile, encode_job
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


def the_worker() -> psutil.Process:
    """The one child that is a worker: a database of other tests may be another."""
    (process,) = (child for child in psutil.Process().children() if "fedsim.worker" in child.cmdline())
    return process


def await_reply(selector: DefaultSelector, workers: WorkerPool) -> Reply:
    while True:
        assert selector.select(60), "nothing came"
        replies, broken = workers.replies()
        assert broken is None
        if replies:
            return replies[0]


def await_broken(selector: DefaultSelector, workers: WorkerPool) -> str:
    while True:
        assert selector.select(60), "nothing came"
        _, broken = workers.replies()
        if broken is not None:
            return broken


def test_workers_that_have_ended_leave_no_descriptor_and_no_child() -> None:
    with DefaultSelector() as selector:
        before, children = open_descriptors(), psutil.Process().children()
        for _ in range(5):
            pool(selector, max_restarts=0).close()
        assert open_descriptors() == before
        assert not selector.get_map()
    assert psutil.Process().children() == children


def test_a_worker_killed_in_its_job_does_the_job_in_its_next_life() -> None:
    with DefaultSelector() as selector:
        workers = pool(selector, max_restarts=1)
        workers.give(InspectHost(device="cpu"))
        the_worker().kill()
        assert isinstance(await_reply(selector, workers), HostInspected)
        workers.close()


def test_a_worker_that_keeps_dying_breaks_the_task_with_the_way_it_died() -> None:
    with DefaultSelector() as selector:
        workers = pool(selector, max_restarts=0)
        the_worker().kill()
        assert "Killed (signal 9), once" in await_broken(selector, workers)
        workers.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here torch itself is asked for the GPU")
def test_a_host_without_a_gpu_is_looked_at_without_importing_torch() -> None:
    look = "from fedsim.worker import host_jobs, jobs; print(host_jobs.do(jobs.InspectHost(device='auto')).torch)"
    seen = "import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{look}; {seen}"], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [torch.__version__, "False"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_wanted_and_not_there_is_told() -> None:
    with pytest.raises(BadInput, match="device: cuda"):
        host_jobs.do(InspectHost(device="cuda"))


def test_a_job_of_another_version_is_not_understood_and_says_what_to_do() -> None:
    reply = Worker(threads=1).answer(b'{"job": "dream", "of": "sheep"}\n')
    assert isinstance(reply, JobFailed)
    assert reply.reason.endswith("restart the daemon")


def test_a_job_of_any_length_is_given_without_waiting_for_the_worker(tmp_path: Path) -> None:
    with DefaultSelector() as selector:
        workers = pool(selector, max_restarts=0)
        worker = the_worker()
        os.kill(worker.pid, signal.SIGSTOP)
        update = WeightedFile(path=tmp_path / "update.npy", digest="0" * 64, weight=1)
        job = Aggregate(settings=TaskSettings(), round=1, base=tmp_path, updates=(update,) * 20_000, out=tmp_path)
        assert len(encode_job(job)) > 2**21, "more than any socket holds"
        workers.give(job)
        os.kill(worker.pid, signal.SIGCONT)
        reply = await_reply(selector, workers)
        assert isinstance(reply, JobFailed)
        assert "model.npy" in reply.reason, "there is no model"
        workers.close()
