"""Chunks that several processes train at once give the bytes of one process."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

import pytest
import torch
from torch import nn

from fedsim.errors import BadInput
from fedsim.learning.engines.batched import BatchedEngine
from fedsim.learning.errors import Diverged
from fedsim.learning.simulate import simulate
from fedsim.settings import TaskSettings
from fedsim.testing.conformance.candidate import small_data

pytestmark = pytest.mark.usefixtures("deterministic_torch")


def settings_of(**chosen: Any) -> TaskSettings:
    given = {"model": "mlp", "model_options": {"hidden": (8,)}, "partition": "iid", "num_clients": 6, "num_rounds": 3}
    return TaskSettings.model_validate({**given, "local_learning_rate": 0.05, **chosen})


@pytest.mark.parametrize("strategy", ["fedavg", "median", "fedavgm", "scaffold"])
def test_the_chunks_decide_the_result_and_not_the_processes(strategy: str) -> None:
    settings = settings_of(strategy=strategy)
    runs = [simulate(settings, small_data(), chunk_clients=2, workers=workers) for workers in (1, 2, 3)]
    assert len({run.digest for run in runs}) == 1
    assert len({str(run.rounds) for run in runs}) == 1
    assert not multiprocessing.active_children()


def test_without_a_number_each_process_has_a_chunk_of_every_round() -> None:
    settings = settings_of()
    assert (
        simulate(settings, small_data(), workers=2).digest == simulate(settings, small_data(), chunk_clients=3).digest
    )


def test_nodes_with_data_of_their_own_and_any_engine_can_be_trained_at_once() -> None:
    settings = settings_of(partition="local", num_clients=2)
    nodes = [small_data(), small_data(count=60)]
    runs = [simulate(settings, nodes, workers=workers, engine=BatchedEngine) for workers in (1, 2)]
    assert runs[0].digest == runs[1].digest


def test_a_process_that_has_computed_with_several_threads_can_fork() -> None:
    alone = simulate(settings_of(), small_data(), chunk_clients=3).digest
    torch.set_num_threads(2)
    torch.nn.functional.linear(torch.ones(3000, 784), torch.ones(200, 784)).exp_()
    assert simulate(settings_of(), small_data(), workers=2).digest == alone


def test_a_resumed_run_continues_with_the_states_of_its_clients() -> None:
    settings = settings_of(strategy="scaffold", num_rounds=4)
    whole = simulate(settings, small_data(), chunk_clients=3)
    half = simulate(settings.model_copy(update={"num_rounds": 2}), small_data(), workers=2)
    assert simulate(settings, small_data(), workers=2, resume=half).digest == whole.digest


def test_a_client_that_diverges_is_named() -> None:
    settings = settings_of(local_learning_rate=100.0, local_epochs=200, local_batch_size=5)
    found = []
    for workers in (1, 3):
        with pytest.raises(Diverged) as caught:
            simulate(settings, small_data(), chunk_clients=6, workers=workers)
        found.append((caught.value.round_number, caught.value.client))
    assert found[0] == found[1]
    assert not multiprocessing.active_children()


def test_what_the_engine_refuses_is_said_as_in_one_process() -> None:
    def network(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(*shape, classes), nn.BatchNorm1d(classes)).double()

    for workers in (1, 2):
        with pytest.raises(BadInput, match=r"0\.weight is torch\.float64"):
            simulate(settings_of(model_options={}), small_data(), workers=workers, model=network)


def test_a_process_that_dies_is_reported() -> None:
    parent = os.getpid()

    class Dies(nn.Linear):
        def forward(self, examples: Any) -> Any:
            if os.getpid() != parent and len(examples) > 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(examples)

    with pytest.raises(BadInput, match="a process of the simulation has died"):
        simulate(
            settings_of(model_options={}), small_data(), workers=2, model=lambda shape, classes: Dies(*shape, classes)
        )
