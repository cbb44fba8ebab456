"""A disk that fills in the middle of a task: all parts report it and wait, and the task ends with the same bytes."""

from __future__ import annotations

from pathlib import Path
from selectors import DefaultSelector

import numpy as np
import pytest
from platform_support import LONG, digits_lab, undisturbed
from presence import fill, small_disk

from fedsim.errors import SuspendReason
from fedsim.settings import TaskSettings
from fedsim.spool.npy import write_vector
from fedsim.update import Update
from fedsim.worker.forking import ForkServers
from fedsim.worker.jobs import Aggregate, JobFailed
from fedsim.worker.process import WorkerProcess

MIB = 1 << 20


@pytest.mark.parametrize("host", ["server", "node-a"])
def test_a_disk_that_fills_in_a_task_is_waited_for_and_changes_no_byte(tmp_path: Path, host: str) -> None:
    room = {"min_free_bytes": 8 * MIB}
    receiver = {"limits": {"min_free_bytes": 4 * MIB}}
    server = {**room, "node_timeout_seconds": 8}
    with (
        small_disk(tmp_path / "lab" / host, 24) as disk,
        digits_lab(tmp_path / "lab", client=room, server=server, receiver=receiver) as lab,
    ):
        number = lab.submit(**LONG)
        lab.await_round(number, 2)
        fill(disk / "ballast")
        logs = [lab.processes[name].log for name in (host, "receiver" if host == "server" else f"{host}-receiver")]
        said = ("disk_full", "no_space")
        lab.await_logs(logs, said)
        assert not lab.task(number).state.finished, lab.task(number).reason
        (disk / "ballast").unlink()
        assert lab.completed(number).digest == undisturbed(**LONG)


def test_a_node_whose_disk_is_full_at_the_end_gets_the_final_model_when_there_is_room(tmp_path: Path) -> None:
    room = {"min_free_bytes": 8 * MIB}
    receiver = {"limits": {"min_free_bytes": 4 * MIB}}
    with (
        small_disk(tmp_path / "lab" / "node-a", 24) as disk,
        digits_lab(tmp_path / "lab", client=room, receiver=receiver) as lab,
    ):
        number = lab.submit(**LONG | {"num_rounds": 4}, min_responses=0.3, round_timeout_seconds=2)
        lab.await_round(number, 1)
        fill(disk / "ballast")
        task = lab.completed(number)
        lab.await_logs([lab.processes["node-a"].log], ("disk_full",))
        assert task.reason == "4 rounds done; the final model still goes to node-a"
        (disk / "ballast").unlink()
        models = [
            lab.node_spool(node) / "checkpoints" / f"task-{number:06d}.safetensors" for node in ("node-a", "node-b")
        ]
        lab.await_file(models[0])
        assert models[0].read_bytes() == models[1].read_bytes()


def test_an_aggregation_without_disk_space_is_reported(tmp_path: Path) -> None:
    vector = np.zeros(MIB, np.float32)
    base, update = tmp_path / "base", tmp_path / "update.npy"
    write_vector(base / "model.npy", vector)
    digest = write_vector(update, vector)
    with small_disk(tmp_path / "small", 2) as disk:
        job = Aggregate(
            settings=TaskSettings(),
            round=1,
            base=base,
            updates=(Update(base_round=1, num_examples=1, digest=digest),),
            files=(update,),
            out=disk / "out",
        )
        with DefaultSelector() as selector:
            servers = ForkServers(selector)
            worker = WorkerProcess(servers, lambda: None, threads=1, learns=False)
            try:
                worker.submit(job)
                while not (replies := worker.replies()[0]):
                    ready = selector.select(60)
                    assert ready, "nothing came"
                    for key, _ in ready:
                        key.data()
            finally:
                worker.close()
                servers.close()
    (reply,) = replies
    assert isinstance(reply, JobFailed)
    assert reply.suspends is SuspendReason.DISK_FULL
    assert reply.folder == disk / "out"
    assert "no space" in reply.reason
