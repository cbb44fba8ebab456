"""FedPer, FedRep, FedBN and Ditto: what stays with each client, against federated training in a few lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensor_networks as networks
import torch
from tensor_networks import CLASSES, INPUTS, SETTINGS, data, federated
from torch import nn

from fedsim.array_layout import Layout
from fedsim.errors import BadInput
from fedsim.learning.aggregate import client_layout
from fedsim.learning.chunk import training_bytes
from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData
from fedsim.learning.networks import build_model, load_vector
from fedsim.learning.partitions import make_partition
from fedsim.learning.personal import matches
from fedsim.learning.simulate import SimulationResult, simulate
from fedsim.learning.strategies import Strategy, make_strategy
from fedsim.learning.strategies.ditto import Ditto
from fedsim.learning.strategies.fedbn import FedBn
from fedsim.learning.strategies.fedper import FedPer
from fedsim.learning.strategies.fedrep import FedRep
from fedsim.learning.tensor_roles import roles_of
from fedsim.learning.transforms import Pipeline
from fedsim.messages import ModelSpec
from fedsim.spool.client_states import StatesOnDisk
from fedsim.update import PERSONAL, PERSONAL_ROUNDS

pytestmark = pytest.mark.usefixtures("deterministic_torch")
MODEL = networks.Normalised()
HEAD = ("3.weight", "3.bias")
NORMALISATION = ("1.weight", "1.bias", "1.running_mean", "1.running_var")


def begun() -> nn.Module:
    return build_model(
        ModelSpec(name="of_test", feature_shape=(INPUTS,), num_classes=CLASSES), MODEL, seed=SETTINGS.seed_of_model
    )


def assert_trained(
    result: SimulationResult, strategy: Strategy, expected: dict[str, torch.Tensor], kept: dict[int, Any]
) -> None:
    roles = roles_of(begun(), "average", strategy)
    found = Layout(roles.flat_shapes).views(result.vector)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.allclose(found[name], tensor, rtol=1e-6, atol=1e-6), name
    for client, own in kept.items():
        vector = np.concatenate([own[name].reshape(-1) for name in roles.own])
        assert np.allclose(result.client_states[client][PERSONAL], vector, rtol=1e-6, atol=1e-6)


def head_first(epoch: int, personal: bool) -> bool:
    return personal == (epoch < 2)


@pytest.mark.parametrize(
    ("strategy", "personal", "trains"),
    [
        (FedPer(), HEAD, lambda *_: True),
        (FedPer(FedPer.Options(personal=("0", "3.b*"))), ("0.weight", "0.bias", "3.bias"), lambda *_: True),
        (FedRep(FedRep.Options(head_epochs=2)), HEAD, head_first),
        (FedBn(), NORMALISATION, lambda *_: True),
    ],
    ids=["fedper", "fedper patterns", "fedrep", "fedbn"],
)
def test_it_is_the_algorithm_of_its_paper(
    strategy: Strategy, personal: tuple[str, ...], trains: Callable[[int, bool], bool]
) -> None:
    result = simulate(SETTINGS, data(), model=MODEL, strategy=strategy)
    assert_trained(result, strategy, *federated(begun, personal=personal, trains=trains))
    states = [state[PERSONAL] for state in result.client_states.values()]
    assert len(states) == 3
    assert not np.allclose(states[0], states[1]), "each client has its own"


@pytest.mark.parametrize("strategy", [FedPer(), FedRep(), FedBn(), Ditto()], ids=["fedper", "fedrep", "fedbn", "ditto"])
def test_two_processes_give_what_one_gives(strategy: Strategy) -> None:
    one = simulate(SETTINGS, data(), model=MODEL, strategy=strategy, chunk_clients=2)
    two = simulate(SETTINGS, data(), model=MODEL, strategy=strategy, chunk_clients=2, workers=2)
    assert two.digest == one.digest
    for client, state in one.client_states.items():
        assert np.array_equal(two.client_states[client][PERSONAL], state[PERSONAL])


def test_ditto_trains_a_model_of_each_clients_own_near_the_global_one() -> None:
    result = simulate(SETTINGS, data(), model=MODEL, strategy=Ditto(Ditto.Options(regularization=0.5)))
    plain = simulate(SETTINGS, data(), model=MODEL)
    assert result.digest == plain.digest, "the global model is that of FedAvg"
    roles, own = roles_of(begun()), ClientData(SETTINGS, data().train, make_partition(SETTINGS, data().train.labels))
    received = [
        simulate(SETTINGS.model_copy(update={"num_rounds": number}), data(), model=MODEL).vector if number else None
        for number in range(SETTINGS.num_rounds)
    ]
    for client in range(SETTINGS.num_clients):
        model = begun().train()
        for number, vector in enumerate(received, 1):
            anchor = begun()
            if vector is not None:
                load_vector(anchor, vector)
            x, y = (torch.from_numpy(array) for array in own.examples(client))
            optimizer = torch.optim.SGD(model.parameters(), SETTINGS.local_learning_rate)
            for epoch in own.epochs(number, client):
                for batch in torch.from_numpy(epoch).split(SETTINGS.local_batch_size):
                    pairs = zip(model.parameters(), anchor.parameters(), strict=True)
                    pull = sum((one - other.detach()).square().sum() for one, other in pairs)
                    optimizer.zero_grad()
                    (nn.functional.cross_entropy(model(x[batch]), y[batch]) + 0.5 / 2 * pull).backward()
                    optimizer.step()
        found = Layout(roles.flat_shapes).views(result.client_states[client][PERSONAL])
        for name, array in found.items():
            assert np.allclose(array, model.state_dict()[name], rtol=1e-6, atol=1e-6), name


def test_ditto_keeps_statistics_in_its_models() -> None:
    local = SETTINGS.model_copy(update={"statistics": "local"})
    with pytest.raises(BadInput, match="keeps a whole model at each client, with its statistics: leave the setting"):
        simulate(local, data(), model=MODEL, strategy=Ditto)


def test_a_client_that_was_not_chosen_keeps_what_it_had() -> None:
    settings = SETTINGS.model_copy(update={"fraction_train": 0.34, "num_rounds": 6})
    result = simulate(settings, data(), model=MODEL, strategy=FedPer)
    rounds = {client: state[PERSONAL_ROUNDS][0] for client, state in result.client_states.items()}
    assert sum(rounds.values()) == 6
    half = simulate(settings.model_copy(update={"num_rounds": 3}), data(), model=MODEL, strategy=FedPer)
    assert simulate(settings, data(), model=MODEL, strategy=FedPer, resume=half).digest == result.digest


def test_other_rules_and_server_steps_combine_what_is_shared() -> None:
    chosen = {"strategy": "fedper", "aggregation": "median", "server_step": "fedavgm"}
    settings = SETTINGS.model_copy(update={**chosen, "model": "2nn"})
    strategy = make_strategy(settings)
    result = simulate(settings, data())
    roles = roles_of(
        build_model(ModelSpec(name="2nn", feature_shape=(INPUTS,), num_classes=CLASSES)), strategy=strategy
    )
    assert roles.personal == ("5.weight", "5.bias")
    assert len(result.vector) == roles.flat_size
    assert Components.of(settings).strategy.personal_tensors(begun()) == frozenset(HEAD)


def test_personal_layers_survive_as_files_of_the_node(tmp_path: Path) -> None:
    layout = client_layout(FedPer(), 100, personal=12)
    states = StatesOnDisk(tmp_path, layout, 1, 0)
    first = states.read(2)
    assert first[PERSONAL_ROUNDS].tolist() == [0.0]
    states.write(2, {PERSONAL: np.full(12, 7, np.float32), PERSONAL_ROUNDS: np.ones(1, np.float32)})
    assert StatesOnDisk(tmp_path, layout, 2, 0).read(2)[PERSONAL_ROUNDS].tolist() == [0.0], "its update is not written"
    states.adopt([2])
    assert StatesOnDisk(tmp_path, layout, 2, 0).read(2)[PERSONAL].tolist() == [7.0] * 12


def test_what_a_worker_needs_counts_the_personal_layers() -> None:
    without, with_them = (training_bytes(100, FedPer(), 1, Pipeline(), personal=count) for count in (0, 12))
    assert with_them - without == 4 * 4 * 12


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            FedPer(FedPer.Options(personal=("head",))),
            r"no tensor of the model is called head \(it has 0.weight, .* more",
        ),
        (FedPer(FedPer.Options(personal=("*",))), "all trained parameters are personal, and nothing would be averaged"),
        (FedPer(FedPer.Options(personal=("1.num_batches_tracked",))), "no tensor of the model is called 1.num_batches"),
    ],
)
def test_patterns_that_cannot_work_are_refused(strategy: Strategy, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        simulate(SETTINGS, data(), model=MODEL, strategy=strategy)


def test_fedbn_needs_batch_normalisation_whose_statistics_change() -> None:
    with pytest.raises(BadInput, match="fedbn: the model has no batch normalisation"):
        simulate(SETTINGS, data(), model="2nn", strategy=FedBn)
    frozen = SETTINGS.model_copy(update={"statistics": "frozen"})
    with pytest.raises(BadInput, match="keeps statistics at each client, which are not frozen"):
        simulate(frozen, data(), model=MODEL, strategy=FedBn)


def test_fedrep_needs_an_epoch_for_each_of_its_halves() -> None:
    chosen = {"strategy": "fedrep", "strategy_options": {"head_epochs": 3}}
    with pytest.raises(BadInput, match="fedrep needs at least 4 local_epochs with these options, not 3"):
        make_strategy(SETTINGS.model_copy(update=chosen))
    with pytest.raises(BadInput, match="fedrep divides a client's round by epochs: set max_steps to 0"):
        make_strategy(SETTINGS.model_copy(update={**chosen, "local_epochs": 4, "max_steps": 3}))


def test_a_pattern_names_a_layer_or_a_tensor() -> None:
    assert matches("head.0.weight", "head")
    assert matches("head.0.weight", "*.weight")
    assert not matches("header.weight", "head")
