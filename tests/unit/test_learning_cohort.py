"""Who trains in a round, in which chunks, and where randomness comes from."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.learning.cohort import cut_chunks
from fedsim.learning.randomness import generator
from fedsim.learning.samplers.uniform import Uniform


def test_equal_uses_draw_equal_numbers_and_different_uses_different_ones() -> None:
    uses = [
        (0, "a", ()),
        (1, "a", ()),
        (0, "b", ()),
        (0, "a", (0,)),
        (0, "a", (0, 0)),
        (2**32, "a", ()),
        (0, "a", (1,)),
    ]
    streams = [tuple(generator(seed, purpose, *numbers).integers(2**63, size=2)) for seed, purpose, numbers in uses]
    again = [tuple(generator(seed, purpose, *numbers).integers(2**63, size=2)) for seed, purpose, numbers in uses]
    assert streams == again
    assert len(set(streams)) == len(uses)


@given(seed=st.integers(0, 2**63 - 1), round_number=st.integers(1, 10**5), data=st.data())
def test_a_cohort_is_distinct_clients_ascending(seed: int, round_number: int, data: st.DataObject) -> None:
    population = data.draw(st.integers(1, 500))
    size = data.draw(st.integers(1, population))
    cohort = Uniform().draw(seed, round_number, population, size)
    assert len(cohort) == size
    assert list(cohort) == sorted(set(cohort))
    assert cohort[0] >= 0
    assert cohort[-1] < population


def test_every_client_is_drawn_about_equally_often() -> None:
    counts = [0] * 20
    for round_number in range(2000):
        for client in Uniform().draw(7, round_number, 20, 5):
            counts[client] += 1
    assert min(counts) > 400
    assert max(counts) < 600


def test_drawing_from_a_million_costs_memory_for_the_cohort_only() -> None:
    Uniform().draw(0, 1, 1_000_000, 100)
    tracemalloc.start()
    Uniform().draw(0, 2, 1_000_000, 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@given(data=st.data())
def test_chunks_hold_each_client_once_in_canonical_order_and_are_even(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    placement = [(sum(sizes[:node]), size) for node, size in enumerate(sizes)]
    cohort = sorted(data.draw(st.sets(st.integers(0, sum(sizes) - 1), min_size=1)))
    most = data.draw(st.integers(1, 50))
    chunks = cut_chunks(cohort, placement, most)
    assert [client for chunk in chunks for client in chunk.clients] == cohort
    assert [chunk.id for chunk in chunks] == list(range(len(chunks)))
    for node, (first, size) in enumerate(placement):
        here = [chunk for chunk in chunks if chunk.node == node]
        assert all(first <= client < first + size for chunk in here for client in chunk.clients)
        lengths = [len(chunk.clients) for chunk in here]
        assert all(0 < length <= most for length in lengths)
        assert not lengths or max(lengths) - min(lengths) <= 1


def test_a_client_that_lives_nowhere_is_an_error() -> None:
    with pytest.raises(ValueError, match="holds 1 of the cohort's 2 clients"):
        cut_chunks([1, 7], [(0, 5)], 10)


def test_the_slots_of_chunks_differ_and_stay_a_nodes_own_whatever_its_cohort() -> None:
    placement = [(0, 4), (4, 6), (10, 1)]
    for cohort in ([0, 1, 2, 3, 4, 10], list(range(11)), [5, 9]):
        chunks = cut_chunks(cohort, placement, 2)
        found = [chunk.slot for chunk in chunks]
        assert len(set(found)) == len(found)
        for node, (first, count) in enumerate(placement):
            here = [chunk.slot for chunk in chunks if chunk.node == node]
            assert here == list(range(first, first + len(here)))
            assert len(here) <= count
