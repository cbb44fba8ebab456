"""Partitions whose clients differ in labels or sizes, against what their papers say of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim.errors import BadInput
from fedsim.learning.partitions import Partition, make_partition
from fedsim.settings import TaskSettings

LABELS = np.repeat(np.arange(10), np.arange(100, 1100, 100))  # 5,500 examples, of label k 100·(k + 1)


def divided(name: str, clients: int = 20, seed: int = 0, least: int = 1, **options: Any) -> Partition:
    settings = TaskSettings(
        partition=name, partition_options=options, num_clients=clients, seed=seed, min_partition_size=least
    )
    return make_partition(settings, LABELS)


def table(partition: Partition) -> NDArray[np.int64]:
    """How many examples of each label each client holds, [clients, labels]."""
    clients = range(partition.num_clients)
    return np.array([np.bincount(LABELS[partition.indices(client)], minlength=10) for client in clients])


@pytest.mark.parametrize("labels", [1, 2, 3, 10])
def test_each_client_holds_that_many_labels_and_shares_them_evenly(labels: int) -> None:
    found = table(divided("labels_per_client", labels=labels))
    assert ((found > 0).sum(axis=1) == labels).all()
    assert all(found[client, client % 10] > 0 for client in range(20))
    assert found.sum(axis=0).tolist() == [100 * (label + 1) for label in range(10)], "every example is dealt"
    for column in found.T:
        held = column[column > 0]
        assert held.max() - held.min() <= 1


def test_labels_that_no_client_holds_are_left_out() -> None:
    found = table(divided("labels_per_client", clients=4, labels=1))
    assert found.sum(axis=0).tolist() == [100, 200, 300, 400, 0, 0, 0, 0, 0, 0]


def test_more_labels_than_there_are_and_too_small_clients_are_refused() -> None:
    with pytest.raises(BadInput, match=r"partition_options.labels: 11 labels .* has 10: choose at most 10"):
        divided("labels_per_client", labels=11)
    with pytest.raises(BadInput, match="the smallest of 20 clients holds 50 of 5500 training examples, 51 are asked"):
        divided("labels_per_client", labels=1, least=51)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_sizes_follow_a_power_law_of_ranks_drawn_at_random(alpha: float) -> None:
    partition = divided("quantity", sizes="power_law", alpha=alpha, least=10)
    sizes = np.diff(partition.offsets)
    expected = np.arange(1, 21) ** -alpha
    expected = expected / expected.sum() * (5500 - 200) + 10
    assert np.abs(np.sort(sizes)[::-1] - expected).max() <= 1
    assert sorted(partition.order.tolist()) == list(range(5500))
    assert np.diff(divided("quantity", sizes="power_law", alpha=alpha, seed=1).offsets).tolist() != sizes.tolist()


def test_dirichlet_sizes_are_uneven_for_a_small_alpha_and_even_for_a_large_one() -> None:
    spreads = []
    for alpha in (0.1, 1.0, 1000.0):
        sizes = np.diff(divided("quantity", alpha=alpha, least=5).offsets)
        assert sizes.sum() == 5500
        assert sizes.min() >= 5
        spreads.append(sizes.std() / sizes.mean())
    assert spreads[0] > 1.5 > spreads[1] > 0.5
    assert spreads[2] < 0.1


def test_a_balanced_dirichlet_gives_equal_sizes_and_its_mixtures_follow_alpha() -> None:
    prior = (np.arange(10) + 1) / 55
    apart = []
    for alpha in (0.1, 10.0, 1000.0):
        found = table(divided("dirichlet", balanced=True, alpha=alpha))
        assert (found.sum(axis=1) == 275).all()
        # Of the first clients, before classes are used up: how far their mixtures are from the data set's.
        apart.append(np.abs(found[:8] / 275 - prior).sum(axis=1).mean())
    assert apart[0] > 1.2 > apart[1] > 0.3
    assert apart[2] < 0.2


def test_a_balanced_dirichlet_deals_all_examples_that_fill_clients() -> None:
    partition = divided("dirichlet", balanced=True, alpha=0.05, clients=7)
    assert np.diff(partition.offsets).tolist() == [785] * 7
    assert len(np.unique(partition.order)) == len(partition.order) == 7 * 785
