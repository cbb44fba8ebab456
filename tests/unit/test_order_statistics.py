"""Order statistics by sorting networks equal those of numpy, number by number."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedsim.learning import order_statistics
from fedsim.learning.order_statistics import comparators, middle_mean


@pytest.mark.parametrize("count", range(1, 13))
def test_the_network_sorts_all_zeros_and_ones(count: int) -> None:
    """Which is enough: a network that sorts these sorts everything (Knuth, 5.3.4, theorem Z)."""
    pairs = comparators(count, tuple(range(count)))
    for values in product((0, 1), repeat=count):
        row = list(values)
        for low, high in pairs:
            row[low], row[high] = min(row[low], row[high]), max(row[low], row[high])
        assert row == sorted(row)


def test_for_the_middle_fewer_comparators_suffice() -> None:
    assert len(comparators(16, (7, 8))) < len(comparators(16, tuple(range(16)))) == 63


@given(st.data(), st.sampled_from([1, 2, 3, 5, 8, 16, 21, 40]))
def test_the_median_is_numpys(data: st.DataObject, count: int) -> None:
    updates = data.draw(arrays(np.float32, (count, 5), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
    expected = np.median(updates.astype(np.float64), axis=0)
    assert middle_mean(list(updates), (count - 1) // 2).tobytes() == (expected + 0.0).tobytes()


@pytest.mark.parametrize("count", [5, 16, order_statistics.MOST_SORTED + 1, 300])
@pytest.mark.parametrize("size", [1, 7, order_statistics.BLOCK + 3])
def test_a_trimmed_mean_leaves_out_both_ends(count: int, size: int) -> None:
    rng = np.random.default_rng(count)
    updates = rng.normal(size=(count, size)).astype(np.float32)
    kept = np.sort(updates, axis=0)[2 : count - 2].astype(np.float64)
    total = np.zeros(size)
    for row in kept:
        total += row
    before = updates.copy()
    assert np.array_equal(middle_mean(list(updates), 2), total / len(kept))
    assert np.array_equal(updates, before)


def test_what_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="of 4 updates 2 cannot be left out"):
        middle_mean([np.zeros(1, np.float32)] * 4, 2)
