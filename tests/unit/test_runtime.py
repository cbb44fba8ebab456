"""What the daemons share: timers, reloads, versions of workers, and bulkheads around tasks."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from selectors import DefaultSelector
from typing import Any

import pytest
import yaml

from fedsim.config import ClientConfig
from fedsim.errors import BadInput, DiskFull, HostTrouble, SuspendReason, Unavailable
from fedsim.metrics import NodeMetrics
from fedsim.runtime.bulkhead import Restarts
from fedsim.runtime.daemon import reload_config
from fedsim.runtime.driver import TaskDriver, contained
from fedsim.runtime.event_loop import EventLoop
from fedsim.runtime.outbox import Outbox
from fedsim.runtime.systemd import notify
from fedsim.runtime.telemetry import TaskTelemetry
from fedsim.runtime.worker_versions import WorkerVersions
from fedsim.runtime.writer import Writer
from fedsim.spool.host_errors import host_errors
from fedsim.state_machines.suspension import Suspended
from fedsim.worker import jobs


def test_a_service_manager_that_does_not_read_blocks_no_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        queued = 0
        while notify("WATCHDOG=1", wait=False):
            queued += 1
        assert queued > 0
        assert manager.recv(64) == b"WATCHDOG=1"
        assert notify("STATUS=waiting for a task", wait=False), "there is room again"


class NoOutbox(Outbox):
    """Has no transfers."""

    def __init__(self) -> None:
        pass

    def cancel(self, unwanted: object) -> None:
        pass


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def writer() -> Iterator[Writer]:
    with Writer() as writer:
        yield writer


def written(writer: Writer) -> None:
    """Wait for a write, and go on in the loop."""
    select.select([writer], [], [], 10)
    writer.dispatch()


UID = "0" * 32


class Driver(TaskDriver[str, str]):
    """A task whose events are exceptions to raise; or to store, if they begin with a plus."""

    ended = False
    decided = False

    def __init__(
        self, writer: Writer, *, breaks: bool = False, restarts: Restarts | None = None, progress: int = 0
    ) -> None:
        self.restarts = restarts or Restarts()
        self.at = progress
        super().__init__(UID, TaskTelemetry(1, NodeMetrics()), NoOutbox(), writer, self.restarts)
        self.breaks = breaks
        self.failed: list[str] = []
        self.done: list[str] = []
        self.suspensions = 0

    @property
    def progress(self) -> int:
        return self.at

    def handle(self, event: str | Suspended) -> list[str]:
        return event.split() if isinstance(event, str) else [f"-{event.reason}"]

    def carry_out(self, action: str) -> None:
        if action == "full":
            self.write(full_disk)
        elif action.startswith("+"):
            self.write(lambda: self.done.append(f"{action} on {threading.current_thread().name[:6]}"))
        elif action.startswith("-"):
            self.done.append(action)
        else:
            raise KeyError(action)

    def worker_replied(self, reply: jobs.Reply) -> None:  # noqa: ARG002
        raise AssertionError

    def failure(self, reason: str) -> str:
        self.failed.append(reason)
        return "again" if self.breaks else ""

    def quit(self) -> None:
        self.suspensions += 1
        super().quit()

    @contained
    def happen(self, event: str) -> None:
        self.dispatch(event)

    @contained
    def lose(self, error: Exception) -> None:
        raise error


def test_nothing_follows_a_write_before_it_has_ended(writer: Writer) -> None:
    driver = Driver(writer)
    driver.happen("-a +b -c +d -e")
    driver.happen("-f")
    assert [action for action in driver.done if action[0] == "-"] == ["-a"]
    for _ in range(2):
        written(writer)
    assert driver.done == ["-a", "+b on writer", "-c", "+d on writer", "-e", "-f"]


def test_an_error_of_a_write_suspends_as_it_would_in_the_loop(writer: Writer) -> None:
    driver = Driver(writer)
    driver.happen("full -a")
    with pytest.raises(DiskFull):
        written(writer)
    assert not driver.done


def test_a_write_of_a_suspended_task_is_carried_out_but_nothing_follows_it(writer: Writer) -> None:
    driver = Driver(writer)
    driver.happen("+a -b")
    driver.suspend(DiskFull("full"))
    written(writer)
    assert driver.suspended is SuspendReason.DISK_FULL
    assert sorted(driver.done) == ["+a on writer", "-disk_full"]


def test_a_writer_carries_out_everything_in_order_before_it_ends() -> None:
    done: list[int] = []
    with Writer() as writer:
        for number in range(100):
            writer.submit(partial(done.append, number))
        writer.drain()
        assert len(done) == 100
        for number in range(100, 200):
            writer.submit(partial(done.append, number))
    assert done == [*range(200)]


def test_an_exception_in_the_loop_leaves_the_completions_that_follow_for_the_next_turn(writer: Writer) -> None:
    results: list[int] = []
    writer.submit(full_disk)
    writer.submit(lambda: 1, lambda future: results.append(future.result()))
    writer._thread.submit(lambda: None).result()
    with pytest.raises(OSError, match="No space"):
        written(writer)
    written(writer)
    assert results == [1]


def test_an_exception_while_a_task_is_served_interrupts_it_and_a_second_one_fails_it(writer: Writer) -> None:
    driver = Driver(writer)
    driver.happen("+a boom -b")
    written(writer)
    assert "KeyError: 'boom'" in driver.interrupted
    assert (driver.failed, driver.suspensions) == ([], 1)
    driver.happen("-c")
    assert driver.done == ["+a on writer"]

    resumed = Driver(writer, restarts=driver.restarts)
    resumed.happen("boom")
    (reason,) = resumed.failed
    assert "KeyError: 'boom'" in reason
    assert not resumed.abandoned


def test_after_a_further_round_a_task_is_interrupted_again_but_never_for_ever(writer: Writer) -> None:
    restarts = Restarts()

    def outcome(progress: int) -> str:
        driver = Driver(writer, restarts=restarts, progress=progress)
        driver.happen("boom")
        return "interrupted" if driver.interrupted else "failed"

    assert [outcome(at) for at in (3, 3, 4, 0, 4, 5)] == [
        "interrupted",
        "failed",
        "interrupted",
        "failed",
        "failed",
        "interrupted",
    ]
    restarts.forget(UID)
    assert outcome(0) == "interrupted"


def test_what_fedsim_itself_reports_fails_the_task_at_once(writer: Writer) -> None:
    driver = Driver(writer)
    driver.lose(BadInput("the data has changed"))
    assert driver.failed == ["the data has changed"]


def test_a_task_that_cannot_even_be_failed_is_abandoned_and_left_alone(writer: Writer) -> None:
    restarts = Restarts()
    restarts.allow(UID, 0)
    driver = Driver(writer, breaks=True, restarts=restarts)
    driver.happen("boom")
    assert driver.abandoned
    assert driver.suspensions == 1
    driver.happen("boom")
    assert len(driver.failed) == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull),
        (OSError(errno.EIO, "Input/output error", "model.npy"), HostTrouble),
        (Unavailable("the database is gone"), Unavailable),
    ],
)
def test_what_concerns_every_task_passes_to_the_daemon(error: Exception, kind: type[Exception], writer: Writer) -> None:
    driver = Driver(writer)
    with pytest.raises(kind):
        driver.lose(error)
    assert not driver.failed


def test_an_error_that_concerns_one_file_interrupts_its_task_alone(writer: Writer) -> None:
    driver = Driver(writer)
    driver.lose(FileNotFoundError(errno.ENOENT, "No such file", "plan.json"))
    assert "plan.json" in driver.interrupted
    with pytest.raises(FileNotFoundError), host_errors():
        raise FileNotFoundError(errno.ENOENT, "No such file", "plan.json")


def test_timers_call_back_once_and_descriptors_while_they_are_readable() -> None:
    with DefaultSelector() as selector:
        loop = EventLoop(selector)
        calls: list[str] = []
        timer = loop.timer(lambda: calls.append("timer"))
        loop.run_once(until=0.0)
        timer.start()
        loop.run_once(until=time.monotonic() + 10)
        loop.run_once(until=0.0)
        assert calls == ["timer"]
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb", buffering=0) as source:
            loop.watch(source, lambda: calls.append(source.read(1).decode()))
            os.write(writer, b"ab")
            os.close(writer)
            loop.run_once(until=time.monotonic() + 10)
            loop.run_once(until=time.monotonic() + 10)
        assert calls == ["timer", "a", "b"]


def test_a_reload_keeps_what_only_a_restart_can_change(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "name": "a",
        "server": {"port": 9001},
        "datasets": [{"name": "digits", "path": "digits", "format": "digits"}],
    }
    path = tmp_path / "client.yml"
    current = ClientConfig.model_validate(content)
    path.write_text(yaml.safe_dump({**content, "name": "b", "clients": 7}))
    reloaded = reload_config(path, current, ("name", "server"))
    assert (reloaded.name, reloaded.clients) == ("a", 7)


def test_the_versions_of_workers_are_recorded_once_and_survive_a_restart(tmp_path: Path) -> None:
    versions = WorkerVersions.open(tmp_path, "0.1")
    assert versions.add("node-a", {"0.1"}) == ["0.1"]
    assert versions.add("node-a", {"0.1", "0.2"}) == ["0.2"]
    versions.write()
    again = WorkerVersions.open(tmp_path)
    assert again.version == "0.1"
    assert again.add("node-a", {"0.2"}) == []
    assert again.all == ["0.1", "0.2"]


def test_each_reason_to_suspend_tasks_has_its_error() -> None:
    reasons = {error.suspend_reason for error in (Unavailable, DiskFull, HostTrouble)}
    assert reasons == set(SuspendReason)
    assert DiskFull("full").suspend_reason.words == "disk full"
