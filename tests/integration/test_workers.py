"""A task's workers: what a daemon keeps of those that have ended, and what it hears of those that die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from selectors import DefaultSelector

import psutil
import pytest
import torch
from platform_support import lives, workers_of

from fedsim import __version__
from fedsim.errors import BadInput
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.update import Update
from fedsim.worker import host_jobs
from fedsim.worker.forking import ForkServers
from fedsim.worker.jobs import (
    Aggregate,
    HostInspected,
    InspectHost,
    JobFailed,
    MakeInitialModel,
    Reply,
    encode_job,
)
from fedsim.worker.main_loop import Worker
from fedsim.worker.pool import WorkerPool


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def fresh() -> Iterator[ForkServers]:
    """Fork servers of one test."""
    with DefaultSelector() as selector:
        servers = ForkServers(selector)
        yield servers
        servers.close()
        assert not selector.get_map()


@pytest.fixture(scope="module")
def shared() -> Iterator[ForkServers]:
    """Fork servers of many tests: importing torch takes longer than a test."""
    with DefaultSelector() as selector:
        servers = ForkServers(selector)
        yield servers
        servers.close()
        assert not selector.get_map()


@pytest.fixture
def servers(shared: ForkServers) -> Iterator[ForkServers]:
    """The shared fork servers, without a worker before and after the test."""
    yield shared
    while not all(server.idle for server in shared):
        turn(shared)


def pool(servers: ForkServers, *, max_restarts: int, on_death: Callable[[], None] = lambda: None) -> WorkerPool:
    return WorkerPool(
        ["only"],
        servers,
        lambda: None,
        threads=1,
        max_restarts=max_restarts,
        log={"task": 1},
        version=__version__,
        on_death=on_death,
    ).start()


def turn(servers: ForkServers) -> None:
    """A turn of a daemon's loop."""
    ready = servers.selector.select(60)
    assert ready, "nothing came"
    for key, _ in ready:
        key.data()


def the_worker(servers: ForkServers) -> psutil.Process:
    """The one that there is, as soon as there is one."""
    while not (workers := workers_of(psutil.Process())):
        turn(servers)
    (worker,) = workers
    return worker


def kill_in_a_job(servers: ForkServers, workers: WorkerPool) -> None:
    worker = the_worker(servers)
    worker.suspend()
    workers.submit(InspectHost(device="cpu"))
    worker.kill()


def await_reply(servers: ForkServers, workers: WorkerPool) -> Reply:
    while True:
        replies, broken = workers.replies()
        assert broken is None
        if replies:
            return replies[0]
        turn(servers)


class Unheard:
    """Takes no note of its worker."""

    def began(self, pid: int, pidfd: int) -> None:  # noqa: ARG002 - see Forked
        os.close(pidfd)

    def not_started(self, problem: str) -> None:
        raise AssertionError(problem)

    def ended(self, how: str) -> None:
        assert how == "ended with exit code 0"


def await_broken(servers: ForkServers, workers: WorkerPool) -> str:
    while True:
        _, broken = workers.replies()
        if broken is not None:
            return broken
        turn(servers)


def test_workers_that_have_ended_leave_no_descriptor_and_no_child() -> None:
    before, children = open_descriptors(), psutil.Process().children()
    with DefaultSelector() as selector:
        servers = ForkServers(selector)
        pool(servers, max_restarts=0).close()  # before it has begun
        for _ in range(5):
            workers = pool(servers, max_restarts=0)
            worker = the_worker(servers)
            workers.close()
            while lives(worker):  # where it had begun and we had not heard of it yet
                turn(servers)
        servers.close()
        assert not selector.get_map()
    assert open_descriptors() == before
    assert psutil.Process().children() == children


def test_a_worker_that_is_closed_before_it_has_begun_does_nothing(servers: ForkServers, tmp_path: Path) -> None:
    workers = pool(servers, max_restarts=0)
    settings = TaskSettings(model="logistic", dataset="digits")
    workers.submit(
        MakeInitialModel(
            settings=settings,
            model_spec=ModelSpec.of(settings, (8, 8), 10),
            max_parameters=10**6,
            out=tmp_path / "round-000000",
        )
    )
    workers.close()
    assert servers.selector.select(60), "it has begun, which is not read here yet"
    psutil.wait_procs(workers_of(psutil.Process()))
    while not servers.of(1).idle:
        turn(servers)
    assert list(tmp_path.iterdir()) == []


def test_a_last_reply_and_the_end_after_it_are_both_told_at_once(servers: ForkServers) -> None:
    deaths: list[str] = []
    workers = pool(servers, max_restarts=1, on_death=lambda: deaths.append("died"))
    workers.submit(InspectHost(device="cpu"))
    worker = the_worker(servers)
    turn(servers)  # it has begun, and gets its job
    assert servers.selector.select(60), "its reply"
    worker.kill()
    while not servers.of(1).idle:  # its end is heard of, and the reply has not been asked for
        turn(servers)
    (reply,), _ = workers.replies()
    assert isinstance(reply, HostInspected)
    assert deaths == ["died"]
    workers.close()


def test_a_worker_killed_in_its_job_does_the_job_in_its_next_life(servers: ForkServers) -> None:
    workers = pool(servers, max_restarts=1)
    workers.submit(InspectHost(device="cpu"))
    the_worker(servers).kill()
    assert isinstance(await_reply(servers, workers), HostInspected)
    workers.close()


def test_workers_whose_fork_server_dies_do_their_jobs_in_their_next_life(servers: ForkServers) -> None:
    workers = pool(servers, max_restarts=1)
    workers.submit(InspectHost(device="cpu"))
    await_reply(servers, workers)
    worker = the_worker(servers)
    os.kill(worker.pid, signal.SIGSTOP)
    workers.submit(InspectHost(device="cpu"))
    psutil.Process(worker.ppid()).kill()
    assert isinstance(await_reply(servers, workers), HostInspected)
    assert not lives(worker)
    workers.close()


def test_a_worker_that_keeps_dying_breaks_the_task_with_the_way_it_died(servers: ForkServers) -> None:
    workers = pool(servers, max_restarts=0)
    the_worker(servers)
    kill_in_a_job(servers, workers)
    assert workers.deaths == 0
    assert "Killed (signal 9), once" in await_broken(servers, workers)
    assert workers.deaths == 1, "which the next hello reports"
    workers.close()


def test_only_deaths_in_a_job_count_and_only_in_a_row(servers: ForkServers) -> None:
    deaths: list[str] = []
    workers = pool(servers, max_restarts=1, on_death=lambda: deaths.append("died"))
    for number in range(4):
        the_worker(servers).kill()  # while it is idle
        while len(deaths) <= 2 * number:
            turn(servers)
            assert workers.replies() == ([], None)
        workers.submit(InspectHost(device="cpu"))
        assert isinstance(await_reply(servers, workers), HostInspected)
        kill_in_a_job(servers, workers)
        assert isinstance(await_reply(servers, workers), HostInspected)
        assert len(deaths) == 2 * number + 2
    workers.close()


def test_a_worker_whose_daemon_was_killed_ends_without_a_traceback(servers: ForkServers) -> None:
    ours, theirs = socket.socketpair()
    servers.of(1).fork(theirs, Unheard(), learns=False, log={})
    theirs.close()
    worker = the_worker(servers)
    ours.sendall(encode_job(InspectHost(device="cpu")) * 50)
    ours.close()  # with replies unread, as by a kill
    psutil.wait_procs([worker], timeout=60)


def test_a_second_worker_has_torch_at_once_and_no_descriptor_of_the_first(servers: ForkServers) -> None:
    first = pool(servers, max_restarts=0)
    one = the_worker(servers)
    second = pool(servers, max_restarts=0)
    while len(workers := workers_of(psutil.Process())) < 2:
        turn(servers)
    (other,) = (worker for worker in workers if worker.pid != one.pid)
    second.submit(InspectHost(device="cpu"))
    await_reply(servers, second)
    mapped = " ".join(area.path for area in other.memory_maps())
    assert "libtorch" in mapped
    assert "numpy/random/" in mapped, "what torch itself does not import, but jobs do"
    assert len([path for path in Path(f"/proc/{other.pid}/fd").iterdir() if int(path.name) > 2]) == 1
    second.close()
    first.close()


def maps_of(process: psutil.Process) -> str:
    return " ".join(area.path for area in process.memory_maps())


def test_a_warm_fork_server_has_torch_before_there_is_a_task_and_its_workers_have_the_usual_priority(
    fresh: ForkServers,
) -> None:
    fresh.warm(1)
    (warming,) = fresh
    turn(fresh)
    warm = fresh.of(1)
    assert (warm, warm.warm) == (warming, True)
    fresh.warm(1)  # is nothing more to do
    process = psutil.Process(warm._process.pid)
    assert "libtorch" in maps_of(process)
    assert "nvidia" not in maps_of(process), "a context of a GPU"
    workers = pool(fresh, max_restarts=0)
    assert the_worker(fresh).nice() == psutil.Process().nice()
    workers.close()


def test_a_worker_does_not_wait_for_a_fork_server_that_warms_at_low_priority(fresh: ForkServers) -> None:
    fresh.warm(1)
    (warming,) = fresh
    asked = fresh.of(1)
    assert asked is not warming
    assert not warming.alive
    assert asked.warm is None


def test_a_fork_server_without_workers_makes_room_for_another_number_of_threads(fresh: ForkServers) -> None:
    first = fresh.of(1)
    assert fresh.of(1) is first
    second = fresh.of(2)
    assert not first.alive
    assert fresh.of(2) is second
    assert fresh.of(None) is second


@pytest.mark.skipif(torch.cuda.is_available(), reason="here torch itself is asked for the GPU")
def test_a_host_without_a_gpu_is_looked_at_without_importing_torch() -> None:
    look = "from fedsim.worker import host_jobs, jobs; print(host_jobs.do(jobs.InspectHost(device='auto')).torch)"
    seen = "import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{look}; {seen}"], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [torch.__version__, "False"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_wanted_and_not_there_is_reported() -> None:
    with pytest.raises(BadInput, match="device: cuda"):
        host_jobs.do(InspectHost(device="cuda"))


def test_a_job_of_another_version_is_not_understood_and_says_what_to_do() -> None:
    reply = Worker(threads=1).answer(b'{"job": "dream", "of": "sheep"}\n')
    assert isinstance(reply, JobFailed)
    assert reply.reason.endswith("restart the daemon")


def test_a_job_of_any_length_is_given_without_waiting_for_the_worker(servers: ForkServers, tmp_path: Path) -> None:
    workers = pool(servers, max_restarts=0)
    worker = the_worker(servers)
    os.kill(worker.pid, signal.SIGSTOP)
    updates = (Update(base_round=1, num_examples=1, digest="0" * 64),) * 20_000
    files = (tmp_path / "update.npy",) * 20_000
    job = Aggregate(settings=TaskSettings(), round=1, base=tmp_path, updates=updates, files=files, out=tmp_path)
    assert len(encode_job(job)) > 2**21, "more than any socket holds"
    workers.submit(job)
    os.kill(worker.pid, signal.SIGCONT)
    reply = await_reply(servers, workers)
    assert isinstance(reply, JobFailed)
    assert "model.npy" in reply.reason, "there is no model"
    workers.close()
