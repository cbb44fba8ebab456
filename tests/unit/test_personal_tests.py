"""Clients' own models, each tested on what its client holds out: against the same in a few lines."""

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
from fedsim.learning import node_evaluation
from fedsim.learning.aggregate import client_layout
from fedsim.learning.examples import DataSet, Examples
from fedsim.learning.held_out import ClientsHeldOut, deal_held_out
from fedsim.learning.networks import build_model
from fedsim.learning.partitions import Partition, make_partition, partition_of
from fedsim.learning.simulate import simulate
from fedsim.learning.strategies import Strategy
from fedsim.learning.strategies.ditto import Ditto
from fedsim.learning.strategies.fedbn import FedBn
from fedsim.learning.strategies.fedper import FedPer
from fedsim.learning.strategies.fedrep import FedRep
from fedsim.learning.tensor_roles import roles_of
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.spool.client_states import StatesOnDisk
from fedsim.update import PERSONAL, PERSONAL_ROUNDS

pytestmark = pytest.mark.usefixtures("deterministic_torch")
MODEL = networks.Normalised()
HEAD = ("3.weight", "3.bias")
NORMALISATION = ("1.weight", "1.bias", "1.running_mean", "1.running_var")
ON_NODES = SETTINGS.model_copy(update={"evaluation": "nodes", "evaluate_every": 3})


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals are not looked at here, and take longer than all the rest."""
    monkeypatch.setattr(node_evaluation, "RESAMPLES", 2)


def begun() -> nn.Module:
    spec = ModelSpec(name="of_test", feature_shape=(INPUTS,), num_classes=CLASSES)
    return build_model(spec, MODEL, seed=SETTINGS.seed_of_model)


def measured(state_of: Callable[[int], dict[str, Any]], clients: range, held_out: ClientsHeldOut) -> tuple[int, Any]:
    """Examples, and accuracy and loss as sums over clients divided by the examples."""
    correct, loss, count = 0.0, 0.0, 0
    for client in clients:
        model = begun()
        model.load_state_dict({**model.state_dict(), **state_of(client)})
        model.eval()
        mine = held_out.examples.labels[held_out.dealt.indices(client)]
        x = torch.from_numpy(held_out.examples.features[held_out.dealt.indices(client)])
        outputs, y = model(x).detach().double(), torch.from_numpy(mine)
        correct += float((outputs.argmax(1) == y).sum())
        loss += float(nn.functional.cross_entropy(outputs, y, reduction="sum"))
        count += len(y)
    return count, [correct / count, loss / count]


@pytest.mark.parametrize(
    ("strategy", "personal", "trains"),
    [
        (FedPer(), HEAD, lambda *_: True),
        (FedRep(FedRep.Options(head_epochs=2)), HEAD, lambda epoch, personal: personal == (epoch < 2)),
        (FedBn(), NORMALISATION, lambda *_: True),
    ],
    ids=["fedper", "fedrep", "fedbn"],
)
def test_each_example_is_tested_with_the_model_of_the_client_that_holds_it_out(
    strategy: Strategy, personal: tuple[str, ...], trains: Callable[[int, bool], bool]
) -> None:
    result = simulate(ON_NODES, data(), model=MODEL, strategy=strategy, placement=[(0, 2), (2, 1)])
    shared, kept = federated(begun, personal=personal, trains=trains)
    held_out = ClientsHeldOut.of(data(), make_partition(SETTINGS, data().train.labels))
    assert held_out is not None
    of_nodes = result.rounds[-1].node_metrics["nodes"]
    total = 0
    for node, clients in {"0": range(2), "2": range(2, 3)}.items():
        count, values = measured(lambda client: {**shared, **kept[client]}, clients, held_out)
        found = of_nodes[node]
        assert found["num_examples"] == count
        assert [found["metrics"][name].value for name in ("accuracy", "loss")] == pytest.approx(values, rel=1e-5)
        total += count
    assert total == len(data().train), "together they test each example once"
    first = result.rounds[0].node_metrics["nodes"]["0"]["metrics"]["loss"].value
    assert first == pytest.approx(measured(lambda _: {}, range(2), held_out)[1][1], rel=1e-5), "none has trained yet"


def test_ditto_is_tested_with_the_model_that_each_client_keeps() -> None:
    settings = ON_NODES.model_copy(update={"fraction_train": 0.34, "num_rounds": 1})
    result = simulate(settings, data(), model=MODEL, strategy=Ditto)
    (trained,) = result.client_states
    layout = Layout(roles_of(begun()).flat_shapes)

    def state_of(client: int) -> dict[str, Any]:
        vector = result.client_states[client][PERSONAL] if client == trained else result.vector
        return {name: torch.from_numpy(array.copy()) for name, array in layout.views(vector).items()}

    held_out = ClientsHeldOut.of(data(), make_partition(SETTINGS, data().train.labels))
    assert held_out is not None
    found = result.rounds[-1].node_metrics["nodes"]["0"]["metrics"]
    _, values = measured(state_of, range(3), held_out)
    assert [found[name].value for name in ("accuracy", "loss")] == pytest.approx(values, rel=1e-5)


def test_the_servers_test_still_sees_the_personal_layers_as_initialised() -> None:
    both = SETTINGS.model_copy(update={"evaluation": "both", "num_rounds": 1})
    server = both.model_copy(update={"evaluation": "server"})
    with_both, alone = (simulate(settings, data(), model=MODEL, strategy=FedPer) for settings in (both, server))
    assert [one.metrics for one in with_both.rounds] == [one.metrics for one in alone.rounds]


def test_what_personal_layers_are_worth_is_measured() -> None:
    chosen = {"partition": "labels_per_client", "partition_options": {"labels": 1}, "num_clients": 2, "model": "2nn"}
    settings = ON_NODES.model_copy(update=chosen)
    own, shared = (
        simulate(settings.model_copy(update={"strategy": name}), data()).rounds[-1].node_metrics
        for name in ("fedper", "fedavg")
    )
    assert own["nodes"]["0"]["num_examples"] == shared["nodes"]["0"]["num_examples"]
    assert own["mean"]["accuracy"][0] == 1, "a head of its own knows the only label of its client"
    assert shared["mean"]["accuracy"][0] < 1


# ---------------------------------------------------------------- dealing


@pytest.mark.parametrize(
    ("partition", "options"),
    [
        ("iid", {}),
        ("shards", {}),
        ("dirichlet", {"alpha": 0.3}),
        ("labels_per_client", {"labels": 2}),
        ("quantity", {}),
    ],
)
def test_held_out_examples_are_dealt_as_the_labels_of_the_training_examples(
    partition: str, options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(2)
    train, held_out = rng.integers(10, size=4000), rng.integers(10, size=900)
    settings = TaskSettings(partition=partition, partition_options=options, num_clients=20, min_partition_size=5)
    divided = make_partition(settings, train)
    dealt = deal_held_out(divided, train, held_out)
    assert len(np.unique(dealt.order)) == len(dealt.order) == len(held_out)
    owned = np.array([np.bincount(train[divided.indices(client)], minlength=10) for client in range(20)])
    here = np.array([np.bincount(held_out[dealt.indices(client)], minlength=10) for client in range(20)])
    quotas = owned / owned.sum(axis=0) * np.bincount(held_out, minlength=10)
    assert (np.abs(here - quotas) < 2).all()
    assert (np.abs(here.sum(axis=1) - quotas.sum(axis=1)) < 2).all()
    assert not here[owned == 0].any(), "no client is tested on a label that it does not have"


def test_few_examples_are_spread_over_all_clients() -> None:
    train = np.tile(np.arange(10), 100)
    divided = make_partition(TaskSettings(partition="iid", num_clients=50), train)
    dealt = deal_held_out(divided, train, np.repeat(np.arange(10), 5))
    assert [dealt.num_examples(client) for client in range(50)] == [1] * 50


def test_blocks_of_guarded_data_are_dealt_whole() -> None:
    order = np.arange(80)
    divided = Partition(order, np.array([0, 40, 80]))
    labels = np.tile(np.arange(2), 40)
    held_out = np.repeat([0, 0, 0, 1, 1], 5)
    dealt = deal_held_out(divided, labels, held_out, unit=5)
    blocks = [sorted((dealt.indices(client) // 5).tolist()) for client in range(2)]
    assert sorted(blocks[0] + blocks[1]) == sorted(np.repeat(range(5), 5).tolist())
    assert all(part.count(block) == 5 for part in blocks for block in part)
    odd = deal_held_out(divided, labels, np.zeros(13, np.int64), unit=5)
    assert sorted(len(odd.indices(client)) for client in range(2)) == [5, 8], "what is left over goes with the last"


def test_a_label_that_no_client_holds_is_not_tested() -> None:
    divided = Partition(np.array([0, 1]), np.array([0, 2]))
    dealt = deal_held_out(divided, np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert dealt.indices(0).tolist() == [0]


def test_a_clients_held_out_features_have_noise_like_those_that_it_trains_on() -> None:
    settings = TaskSettings(partition="feature_noise", partition_options={"sigma": 4.0}, num_clients=2)
    zeros = Examples(np.zeros((4000, 1), np.float32), np.zeros(4000, np.int64))
    divided = make_partition(settings, zeros.labels)
    held_out = ClientsHeldOut.of(DataSet(zeros, zeros, 2), divided)
    assert held_out is not None
    for client, variance in enumerate((2.0, 4.0)):
        noise = held_out.of_client(client).features
        assert noise.var() == pytest.approx(variance, rel=0.1)
        assert not np.array_equal(noise, divided.change(client, np.zeros_like(noise)))


# ---------------------------------------------------------------- what stays on the node


def test_what_clients_kept_stays_until_the_tests_that_need_it(tmp_path: Path) -> None:
    layout = client_layout(FedPer(), 100, personal=2)

    def trained(number: int, *tested: int) -> None:
        states = StatesOnDisk(tmp_path, layout, number, 0)
        states.write(7, {PERSONAL: np.full(2, number, np.float32), PERSONAL_ROUNDS: np.full(1, number, np.float32)})
        states.adopt([7], tested)

    def after(number: int) -> float:
        return float(StatesOnDisk(tmp_path, layout, number + 1, 0).read(7)[PERSONAL][0])

    for number in range(1, 7):
        trained(number, 2)
    assert [after(number) for number in (2, 3, 5, 6)] == [2, 2, 5, 6]
    assert StatesOnDisk(tmp_path, layout, 2, 0).oldest(7)[PERSONAL_ROUNDS].tolist() == [2.0], "it has trained before"
    assert not StatesOnDisk(tmp_path, layout, 2, 0).oldest(8)[PERSONAL_ROUNDS].any()
    trained(7)
    assert [after(number) for number in (2, 6, 7)] == [0, 6, 7], "the test is recorded"


def test_clients_that_the_data_names_hold_out_their_own_examples() -> None:
    """What speaker 2 of four says is held out by nobody here: it has too little to train on."""
    rng = np.random.default_rng(0)
    named = np.repeat([3, 0, 1, 2], [20, 30, 25, 2])
    train = Examples(rng.normal(size=(77, INPUTS)).astype(np.float32), rng.integers(CLASSES, size=77), clients=named)
    of_test = np.array([0, 2, 3, 3, 1, 0])
    test = Examples(rng.normal(size=(6, INPUTS)).astype(np.float32), np.zeros(6, np.int64), clients=of_test)
    settings = SETTINGS.model_copy(update={"partition": "natural", "num_clients": 3, "min_partition_size": 5})
    partition = partition_of(settings, train)
    held_out = ClientsHeldOut.of(DataSet(train, test, CLASSES), partition)
    assert held_out is not None
    for client in range(3):
        (name,) = set(named[partition.indices(client)])
        assert held_out.dealt.indices(client).tolist() == np.flatnonzero(of_test == name).tolist()
    assert held_out.num_examples(0, 3) == 5
