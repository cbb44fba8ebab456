"""What nodes and clients contributed to a round: against the same figures in a few lines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tensor_networks import SETTINGS, Normalised, data

import fedsim.learning.contributions as module
from fedsim.learning.chunk import mean_update, with_figures
from fedsim.learning.contributions import Contribution, measure_contributions
from fedsim.learning.examples import FloatArray
from fedsim.learning.simulate import simulate
from fedsim.learning.strategies.fedavg import FedAvg
from fedsim.update import MAX_CLIENT_FIGURES, PARAMETERS, TRAIN_LOSS, UPDATE_NORM, Update

RNG = np.random.default_rng(4)
RECEIVED: FloatArray = RNG.normal(size=1000).astype(np.float32)
SIZES = (30, 10, 60, 20)
TRAINED = [(RECEIVED + RNG.normal(scale=0.1, size=1000)).astype(np.float32) for _ in SIZES]


def updates(*, shown: int | None = None) -> list[Update]:
    """Two clients on node a, then two on node b."""
    found = []
    for client, size in enumerate(SIZES):
        node, metrics = "ab"[client // 2], {TRAIN_LOSS: 1.0 + client}
        one = Update(base_round=1, chunk=client // 2, client=client, num_examples=size, node=node, metrics=metrics)
        found.append(with_figures(one.with_arrays({PARAMETERS: TRAINED[client]}), RECEIVED, shown))
    return found


def means() -> tuple[NDArray[np.float64], list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """The mean update, those of the nodes, and those of the clients."""
    moved = [trained.astype(np.float64) - RECEIVED for trained in TRAINED]
    nodes = [np.average(moved[here], axis=0, weights=SIZES[here]) for here in (slice(0, 2), slice(2, 4))]
    return np.average(moved, axis=0, weights=SIZES), nodes, moved


def assert_figures(found: Contribution, moved: NDArray[np.float64], mean: NDArray[np.float64]) -> None:
    norm = np.linalg.norm
    assert found.norm == pytest.approx(norm(moved), rel=1e-12)
    assert found.distance == pytest.approx(norm(moved - mean), rel=1e-12)
    assert found.cosine == pytest.approx(moved @ mean / (norm(moved) * norm(mean)), rel=1e-12)


@pytest.mark.parametrize("block", [64, 2**18])
def test_the_figures_of_nodes_and_clients_are_those_of_their_definition(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    found = measure_contributions(FedAvg(), RECEIVED, updates(shown=1))
    mean, nodes, clients = means()
    assert found.norm == pytest.approx(np.linalg.norm(mean), rel=1e-12)
    for name, moved in zip("ab", nodes, strict=True):
        assert_figures(found.nodes[name], moved, mean)
    for client, moved in enumerate(clients):
        assert_figures(found.clients[client], moved, mean)
        assert (found.clients[client].loss, found.clients[client].num_examples) == (1.0 + client, SIZES[client])
    of_a = found.nodes["a"]
    assert (of_a.num_clients, of_a.num_examples, of_a.loss) == (2, 40, pytest.approx((30 * 1 + 10 * 2) / 40))
    norms = [np.linalg.norm(moved) for moved in clients[:2]]
    assert of_a.client_norm == pytest.approx(np.average(norms, weights=SIZES[:2]))


def test_of_sums_a_node_is_known_and_a_client_only_by_what_it_reports() -> None:
    sums = [mean_update(updates(shown=20)[here], FedAvg()) for here in (slice(0, 2), slice(2, 4))]
    found = measure_contributions(FedAvg(), RECEIVED, sums)
    mean, nodes, clients = means()
    assert found.nodes["b"].distance == pytest.approx(np.linalg.norm(nodes[1] - mean), rel=1e-5)
    assert found.nodes["b"].client_norm == sums[1].metrics[UPDATE_NORM]
    assert set(found.clients) == {0, 2, 3}, "client 1 has too few examples"
    assert found.clients[0].norm == pytest.approx(np.linalg.norm(clients[0]))
    assert found.clients[0].distance is None


def test_without_permission_no_client_is_named() -> None:
    assert not any(update.client_figures for update in updates())
    assert measure_contributions(FedAvg(), RECEIVED, updates()).clients == {}


def test_updates_that_cannot_be_compared_have_no_figures() -> None:
    still = [update.with_arrays({PARAMETERS: RECEIVED}) for update in updates(shown=1)]
    found = measure_contributions(FedAvg(), RECEIVED, still)
    assert (found.norm, found.nodes["a"].norm, found.nodes["a"].cosine) == (0.0, 0.0, None)
    lost = [update.with_arrays({PARAMETERS: np.full(1000, np.inf, np.float32)}) for update in updates()]
    assert measure_contributions(FedAvg(), RECEIVED, lost).nodes["a"].norm is None


def test_the_header_of_an_update_names_so_many_clients_at_most() -> None:
    many = [updates(shown=1)[0] for _ in range(MAX_CLIENT_FIGURES + 5)]
    assert len(mean_update(many, FedAvg()).client_figures) == MAX_CLIENT_FIGURES


@pytest.mark.usefixtures("deterministic_torch")
def test_a_simulation_has_the_figures_of_all_clients() -> None:
    given: dict[str, Any] = {"model": Normalised(), "placement": [(0, 2), (2, 1)]}
    result = simulate(SETTINGS, data(), **given)
    assert simulate(SETTINGS, data(), workers=2, chunk_clients=2, **given).rounds == result.rounds
    assert result.rounds[0].contributions.nodes == {}
    last = result.rounds[-1].contributions
    assert set(last.nodes) == {"0", "2"}
    assert set(last.clients) == {0, 1, 2}
    assert last.clients[2].loss == last.nodes["2"].loss
    assert last.clients[2].norm == pytest.approx(last.nodes["2"].norm)
    losses = [last.clients[client].loss for client in range(3)]
    assert result.rounds[-1].train_loss == pytest.approx(sum(filter(None, losses)) / 3)
