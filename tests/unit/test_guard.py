"""The blocks of a guarded data set: fixed, of one label, and never smaller, whatever happens to the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.guard import Division, extend_division, read_division
from fedsim.errors import BadInput
from fedsim.learning.blocks import blocks_in_batch, blocks_of_client, divide_blocks, most_clients_of_blocks
from fedsim.learning.engines import ClientData
from fedsim.learning.examples import Examples, IntArray
from fedsim.settings import TaskSettings

Blocks = set[frozenset[int]]


def people(count: int, labels: int = 3, seed: int = 0, first: int = 0) -> Examples:
    """Examples of which the first feature is a number of their own."""
    chance = np.random.default_rng(seed)
    features = chance.normal(size=(count, 4)).astype(np.float32)
    features[:, 0] = np.arange(first, first + count)
    return Examples(features, chance.integers(0, labels, count))


def joined(*parts: Examples) -> Examples:
    return Examples(np.concatenate([part.features for part in parts]), np.concatenate([part.labels for part in parts]))


def some(examples: Examples, indices: IntArray) -> Examples:
    return Examples(examples.features[indices], examples.labels[indices])


def blocks(division: Division, examples: Examples) -> Blocks:
    """The blocks, by the numbers of their people."""
    numbers = examples.features[division.order, 0].astype(int).reshape(-1, division.size)
    return {frozenset(block) for block in numbers.tolist()}


def test_blocks_are_of_one_label_and_of_one_size_and_differ_from_node_to_node(tmp_path: Path) -> None:
    data = people(500)
    division = extend_division(tmp_path / "a.npz", "a", data, 20)
    labels = data.labels[division.order].reshape(-1, 20)
    assert (labels == labels[:, :1]).all()
    assert len(set(division.order.tolist())) == len(division.order) == 20 * division.num_blocks
    assert division.waiting == 500 - len(division.order) < 3 * 20
    other = extend_division(tmp_path / "b.npz", "b", data, 20)
    assert blocks(other, data) != blocks(division, data)
    assert other.secret_digest != division.secret_digest


def test_the_division_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "guarded" / "a.npz"
    first = extend_division(path, "a", people(200), 20)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    again = read_division(path, "a", people(200), 20)
    assert blocks(again, people(200)) == blocks(first, people(200))
    extend_division(path, "a", people(200), 20)
    assert path.read_bytes() == before


def test_rows_that_are_added_change_no_block_and_wait_until_they_fill_one(tmp_path: Path) -> None:
    path, data = tmp_path / "a.npz", people(400)
    before = blocks(extend_division(path, "a", data, 20), data)
    grown = data
    for batch in range(12):
        grown = joined(grown, people(7, seed=batch + 1, first=grown.features.shape[0]))
        order = np.random.default_rng(batch).permutation(len(grown))
        now = blocks(extend_division(path, "a", some(grown, order), 20), some(grown, order))
        assert before <= now
        before = now
    assert len(before) > len(blocks(read_division(path, "a", data, 20), data))


def test_a_block_that_lost_a_row_is_never_used_again(tmp_path: Path) -> None:
    path, data = tmp_path / "a.npz", people(300)
    first = extend_division(path, "a", data, 20)
    lost = int(first.order[5])
    whole = blocks(first, data)
    (broken,) = [block for block in whole if int(data.features[lost, 0]) in block]
    left = some(data, np.delete(np.arange(300), lost))
    assert blocks(read_division(path, "a", left, 20), left) == whole - {broken}  # also before it is inspected again
    after = extend_division(path, "a", left, 20)
    assert blocks(after, left) == whole - {broken}
    assert after.retired == 19
    assert blocks(extend_division(path, "a", data, 20), data) == whole - {broken}  # nor when the row is back


def test_a_larger_least_difference_merges_whole_blocks_and_a_smaller_one_splits_none(tmp_path: Path) -> None:
    path, data = tmp_path / "a.npz", people(600)
    small = blocks(extend_division(path, "a", data, 10), data)
    with pytest.raises(BadInput, match="blocks of 10 examples, not yet of 25"):
        read_division(path, "a", data, 25)
    large = extend_division(path, "a", data, 25)
    assert large.size == 30
    for block in blocks(large, data):
        assert sum(part <= block for part in small) == 3
    assert blocks(extend_division(path, "a", data, 5), data) == blocks(large, data)


def test_equal_rows_are_told_apart(tmp_path: Path) -> None:
    data = Examples(np.zeros((50, 2), np.uint8), np.zeros(50, np.int64))
    assert len(extend_division(tmp_path / "a.npz", "a", data, 20).order) == 40
    more = Examples(np.zeros((60, 2), np.uint8), np.zeros(60, np.int64))
    assert len(extend_division(tmp_path / "a.npz", "a", more, 20).order) == 60


def rewritten(path: Path) -> Examples:
    extend_division(path, "a", people(200), 20)
    scaled = people(200)
    return Examples(scaled.features * np.float32(0.5), scaled.labels)


def damaged(path: Path) -> Examples:
    extend_division(path, "a", people(200), 20)
    os.truncate(path, path.stat().st_size // 2)
    return people(200)


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (rewritten, "none of the examples of the guarded data set a is one of those that it was divided from"),
        (damaged, "is damaged: restore it from the node's backup"),
        (lambda _: people(30), "no label has the 20 examples of a block"),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path: Path, prepare: Callable[[Path], Examples], problem: str) -> None:
    data = prepare(tmp_path / "a.npz")
    with pytest.raises(BadInput, match=problem):
        extend_division(tmp_path / "a.npz", "a", data, 20)


def test_a_task_reads_only_what_was_divided_before(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not divided into blocks yet"):
        read_division(tmp_path / "a.npz", "a", people(200), 20)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------ clients


@given(
    partition=st.sampled_from(["iid", "shards", "dirichlet", "local"]),
    num_blocks=st.integers(1, 60),
    size=st.integers(2, 30),
    count=st.integers(1, 12),
    batch=st.integers(1, 100),
    least=st.integers(1, 100),
    seed=st.integers(0, 1000),
)
def test_a_client_of_any_task_is_a_union_of_whole_blocks(
    partition: str, num_blocks: int, size: int, count: int, batch: int, least: int, seed: int
) -> None:
    settings = TaskSettings(
        partition=partition, seed=seed, local_batch_size=batch, local_epochs=2, num_clients=50, min_partition_size=least
    )
    labels = np.sort(np.random.default_rng(seed).integers(0, 4, num_blocks))
    count = 1 if partition == "local" else count
    try:
        clients = divide_blocks(settings, labels, size, (7, count), 30)
    except BadInput:
        return
    assert count <= most_clients_of_blocks(settings, num_blocks, size, 30)
    train = Examples(np.zeros((num_blocks * size, 1), np.float32), np.repeat(labels, size))
    steps = settings.model_copy(update={"local_batch_size": blocks_in_batch(settings, size) * size})
    data = ClientData(steps, train, clients, size)
    assert sum(many for many, _ in clients.runs(7, count)) == count
    for client in range(7, 7 + count):
        held = clients.indices(client)
        assert len(held) == clients.num_examples(client) >= max(30, least, 2 * size)
        assert len(held) >= size * blocks_of_client(settings, size, 30)
        assert np.array_equal(
            np.sort(held), np.flatnonzero(np.isin(np.arange(num_blocks * size) // size, held // size))
        )
        assert data.num_steps(client) >= 4  # of two epochs
        for epoch in data.batch_order(1, client):
            assert sorted(epoch.tolist()) == list(range(len(held)))
            for start in range(0, len(held), steps.local_batch_size):
                used = held[epoch[start : start + steps.local_batch_size]]
                assert np.array_equal(
                    np.unique(used // size, return_counts=True)[1] % size, np.zeros(len(used) // size)
                )


def test_whole_blocks_are_held_out_and_stay_so_when_examples_come_or_the_share_grows(tmp_path: Path) -> None:
    path, data = tmp_path / "a.npz", people(2000)
    division = extend_division(path, "a", data, 20)
    train, held_out = division.hold_out(0.2, "a")
    held = {frozenset(block) for block in data.features[held_out, 0].astype(int).reshape(-1, 20).tolist()}
    assert blocks(train, data) | held == blocks(division, data)
    assert not blocks(train, data) & held
    assert 5 <= len(held) <= 40
    grown = joined(data, people(600, seed=9, first=2000))
    _, later = extend_division(path, "a", grown, 20).hold_out(0.2, "a")
    assert held <= {frozenset(block) for block in grown.features[later, 0].astype(int).reshape(-1, 20).tolist()}
    _, more = division.hold_out(0.5, "a")
    assert set(held_out.tolist()) < set(more.tolist())
    with pytest.raises(BadInput, match="leaves none for training or validation"):
        division.hold_out(0.000001, "a")
