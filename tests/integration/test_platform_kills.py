"""Many kills in one task, wherever they come: the final model is the same to the byte."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator

import psutil
import pytest
from platform_support import Platform, digits_lab

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
KILLS = 8
LONG = {"local_epochs": 20, "num_rounds": 12}
WORKERS = ["workers of server", "workers of node-a", "workers of node-b"]
VICTIMS = ["server", "receiver", "node-a", "node-a-receiver", "node-b", "node-b-receiver", *WORKERS]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with digits_lab(tmp_path_factory.mktemp("kills")) as lab:
        yield lab


@pytest.fixture(scope="module", params=["fedavg", "fedavgm", "median"])
def undisturbed(lab: Platform, request: pytest.FixtureRequest) -> tuple[str, str | None]:
    """A strategy, and the final digest of its undisturbed task."""
    return request.param, lab.completed(lab.submit(strategy=request.param, **LONG)).digest


@pytest.mark.parametrize("seed", range(6))
def test_a_task_in_which_many_processes_are_killed_ends_with_the_same_bytes(
    lab: Platform, undisturbed: tuple[str, str | None], seed: int
) -> None:
    chance = random.Random(seed)
    strategy, digest = undisturbed
    # A worker that was killed too often would fail the task, which is another promise.
    number = lab.submit(strategy=strategy, **LONG)
    for at in sorted(chance.choices(range(1, LONG["num_rounds"]), k=KILLS)):
        lab.await_round(number, at)
        victim = chance.choice(VICTIMS)
        if victim in WORKERS:
            for worker in lab.workers(victim.removeprefix("workers of ")):
                try:
                    worker.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
        else:
            lab.kill(victim)
            lab.start(victim)
    assert lab.completed(number).digest == digest
