"""How a data set is divided among the clients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray
from fedsim.learning.partitions import Partition, make_partition, most_clients
from fedsim.settings import TaskSettings


def _partition(labels: IntArray, **chosen: Any) -> Partition:
    return make_partition(TaskSettings(**chosen), labels)


def _alpha(kind: str, alpha: float) -> dict[str, Any]:
    return {"partition_options": {"alpha": alpha}} if kind == "dirichlet" else {}


def _labels(count: int, classes: int = 10) -> IntArray:
    return np.random.default_rng(5).integers(classes, size=count)


@given(
    kind=st.sampled_from(["iid", "shards", "dirichlet"]),
    clients=st.integers(1, 30),
    per_client=st.integers(20, 60),
    seed=st.integers(0, 2**40),
)
def test_no_example_belongs_to_two_clients(kind: str, clients: int, per_client: int, seed: int) -> None:
    labels = _labels(clients * per_client)
    partition = _partition(labels, partition=kind, num_clients=clients, seed=seed, **_alpha(kind, 10.0))
    held = [partition.indices(client) for client in range(clients)]
    together = np.concatenate(held)
    assert len(set(together.tolist())) == len(together)
    assert [len(part) for part in held] == [partition.num_examples(client) for client in range(clients)]
    assert partition.num_clients == clients
    again = _partition(labels, partition=kind, num_clients=clients, seed=seed, **_alpha(kind, 10.0))
    assert all(np.array_equal(again.indices(client), held[client]) for client in range(clients))


@pytest.mark.parametrize("kind", ["iid", "shards", "dirichlet"])
def test_another_seed_deals_otherwise(kind: str) -> None:
    labels = _labels(1000)
    one, other = (_partition(labels, partition=kind, num_clients=10, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.indices(0), other.indices(0))


def test_iid_gives_every_client_equally_many_of_every_kind() -> None:
    labels = _labels(60_000)
    partition = _partition(labels, partition="iid", num_clients=100)
    assert {partition.num_examples(client) for client in range(100)} == {600}
    for client in (0, 50, 99):
        shares = np.bincount(labels[partition.indices(client)], minlength=10)
        assert shares.min() > 30


def test_shards_give_every_client_two_pieces_of_the_sorted_labels() -> None:
    labels = _labels(60_000)
    partition = _partition(labels, partition="shards", num_clients=100)
    kinds = [len(set(labels[partition.indices(client)].tolist())) for client in range(100)]
    assert max(kinds) <= 4
    assert np.mean(kinds) < 2.5
    ordered = np.argsort(labels, kind="stable")
    place = np.empty(60_000, np.int64)
    place[ordered] = np.arange(60_000)
    for client in range(100):
        for shard in place[partition.indices(client)].reshape(2, 300):
            assert shard[0] % 300 == 0
            assert np.array_equal(shard, np.arange(shard[0], shard[0] + 300))


def test_shards_leave_out_only_what_does_not_fill_a_shard() -> None:
    partition = _partition(_labels(1438), partition="shards", num_clients=100)
    assert sum(partition.num_examples(client) for client in range(100)) == 1400


def test_dirichlet_deals_every_example_and_alpha_says_how_evenly() -> None:
    labels = _labels(20_000)
    uneven = {}
    for alpha in (0.1, 100.0):
        partition = _partition(labels, partition="dirichlet", num_clients=20, **_alpha("dirichlet", alpha))
        assert sum(partition.num_examples(client) for client in range(20)) == 20_000
        shares = np.stack([np.bincount(labels[partition.indices(client)], minlength=10) for client in range(20)])
        uneven[alpha] = float((shares.max(axis=1) / shares.sum(axis=1)).mean())
    assert uneven[0.1] > 0.4
    assert uneven[100.0] < 0.16


def test_dirichlet_keeps_to_the_least_size() -> None:
    partition = _partition(
        _labels(2000), partition="dirichlet", num_clients=10, min_partition_size=40, **_alpha("dirichlet", 0.3)
    )
    assert min(partition.num_examples(client) for client in range(10)) >= 40


def test_dirichlet_survives_the_tiniest_alpha() -> None:
    partition = _partition(_labels(500, 400), partition="dirichlet", num_clients=2, **_alpha("dirichlet", 0.001))
    assert partition.num_examples(0) + partition.num_examples(1) == 500


def test_local_gives_the_whole_set_to_whichever_client_the_node_stands_for() -> None:
    partition = _partition(_labels(50), partition="local", num_clients=3)
    assert partition.num_examples(2) == 50
    assert np.array_equal(partition.indices(2), np.arange(50))
    assert partition.runs(2, 1) == ((1, 50),)
    with pytest.raises(BadInput, match="gives a node one client"):
        partition.runs(0, 2)


def test_runs_tell_the_sizes_of_consecutive_clients() -> None:
    assert _partition(_labels(1000), partition="iid", num_clients=10).runs(2, 5) == ((5, 100),)
    partition = _partition(_labels(1000), partition="dirichlet", num_clients=10)
    told = [size for count, size in partition.runs(3, 4) for _ in range(count)]
    assert told == [partition.num_examples(client) for client in range(3, 7)]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"partition": "iid", "num_clients": 51}, "51 clients are too many for 100 .* at most 50 are"),
        ({"partition": "shards", "num_clients": 1000}, "1000 clients are too many for 100 .* at most 50 are"),
        ({"partition": "iid", "num_clients": 10, "min_partition_size": 11}, "at most 8 are possible"),
        ({"partition": "dirichlet", "num_clients": 30, "min_partition_size": 4}, "at most 25 are"),
        (
            {
                "partition": "dirichlet",
                "num_clients": 10,
                "partition_options": {"alpha": 0.01},
                "min_partition_size": 9,
            },
            "larger alpha",
        ),
        ({"partition": "local", "num_clients": 1, "min_partition_size": 101}, "only 100 examples are here"),
    ],
)
def test_what_the_examples_do_not_allow_is_refused_with_what_would_be_right(
    chosen: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        _partition(_labels(100), **chosen)


@given(
    num_examples=st.integers(1, 300),
    least=st.integers(1, 12),
    partition=st.sampled_from(["iid", "shards"]),
)
def test_as_many_clients_as_are_said_to_be_possible_are_and_one_more_is_not(
    num_examples: int, least: int, partition: Any
) -> None:
    most = most_clients(TaskSettings(partition=partition, min_partition_size=least), num_examples)
    if most:
        made = _partition(_labels(num_examples), partition=partition, num_clients=most, min_partition_size=least)
        assert min(made.num_examples(client) for client in range(most)) >= least
    size = num_examples // (2 * (most + 1))
    assert 2 * size < least, "one client more would have held enough"
    with pytest.raises(BadInput, match="num_clients"):
        _partition(_labels(num_examples), partition=partition, num_clients=most + 1, min_partition_size=least)
