"""The rules pass fedsim's conformance suite, and do what their papers say."""

import numpy as np
import pytest
from robust_rules import Krum, TrimmedMean

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.learning.aggregate import aggregate
from fedsim.testing.conformance import Candidate, checks


@pytest.mark.parametrize("check", checks(plugins.STRATEGIES), ids=str)
def test_the_trimmed_mean_keeps_the_contract(check):
    check(Candidate(TrimmedMean, {"share": 0.2}))


@pytest.mark.parametrize("check", checks(plugins.STRATEGIES), ids=str)
def test_krum_keeps_the_contract(check):
    check(Candidate(Krum))


def combine(strategy, updates):
    received = np.zeros(updates[0].shape, np.float32)
    out = np.empty_like(received)
    aggregate(strategy, received, updates, [1.0] * len(updates), {}, out, {})
    return out


def test_the_trimmed_mean_leaves_out_both_ends():
    values = [1e6, 1.0, 2.0, 3.0, -1e6]
    updates = [np.full(4, value, np.float32) for value in values]
    assert combine(TrimmedMean(TrimmedMean.Options(share=0.2)), updates).tolist() == [2.0] * 4


def test_krum_chooses_an_update_of_the_majority():
    honest = list(np.random.default_rng(0).normal(size=(5, 100)).astype(np.float32))
    liars = [np.full(100, 50.0, np.float32)] * 2
    chosen = combine(Krum(Krum.Options(attackers=2)), [liars[0], *honest, liars[1]])
    assert any(np.array_equal(chosen, update) for update in honest)


def test_krum_needs_a_majority():
    with pytest.raises(BadInput, match="krum with 2 attackers needs at least 7 updates"):
        combine(Krum(Krum.Options(attackers=2)), [np.zeros(3, np.float32)] * 6)
