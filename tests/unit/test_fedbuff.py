"""FedBuff and its asynchronous rounds, in one process: the paper's formula, the clock, the record and its replay."""

from __future__ import annotations

import sys
import tracemalloc
from itertools import islice
from types import FrameType
from typing import Any

import numpy as np
import pytest

from fedsim.data import DataSet, Examples
from fedsim.errors import BadInput
from fedsim.learning.aggregate import aggregate, round_context, weights_of
from fedsim.learning.buffering import Arrival, Buffering, arrivals_by_clock, drawn_chunks
from fedsim.learning.simulate import SimulationResult, simulate
from fedsim.learning.strategies import make_strategy
from fedsim.learning.transforms import make_pipeline
from fedsim.settings import TaskSettings
from fedsim.update import Update

pytestmark = pytest.mark.usefixtures("deterministic_torch")


def data() -> DataSet:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(90, 4)).astype(np.float32)
    examples = Examples(features, (features[:, 0] > 0).astype(np.int64))
    return DataSet(examples, examples, 2)


def settings_for(**chosen: Any) -> TaskSettings:
    return TaskSettings.model_validate(
        {
            "model": "logistic",
            "partition": "iid",
            "num_clients": 9,
            "num_rounds": 6,
            "local_epochs": 1,
            "local_learning_rate": 0.3,
            "strategy": "fedbuff",
            "strategy_options": {"buffer_size": 3, "concurrency": 5},
            **chosen,
        }
    )


def run(settings: TaskSettings, **chosen: Any) -> SimulationResult:
    return simulate(settings, data(), **chosen)


def record_of(result: SimulationResult) -> dict[str, list[list[int]]]:
    """As it is in a checkpoint's JSON."""
    rounds = result.rounds[1:]
    return {str(one.round): [[arrival.base_round, arrival.client] for arrival in one.arrivals] for one in rounds}


# ---------------------------------------------------------------- the paper


@pytest.mark.parametrize(("exponent", "rate"), [(0.5, 1.0), (0.0, 0.3), (2.0, 1.7)])
def test_the_server_moves_the_model_as_in_algorithm_1(exponent: float, rate: float) -> None:
    options = {"staleness_exponent": exponent, "learning_rate": rate, "buffer_size": 4}
    settings = settings_for(strategy_options=options)
    strategy = make_strategy(settings)
    rng = np.random.default_rng(1)
    number, bases = 9, (9, 3, 8, 9)
    model = rng.normal(size=40)
    changes = rng.normal(size=(4, 40))
    moved = model.copy()
    for base, change in zip(bases, changes, strict=True):  # w ← w + η_g/K · Σ s(τ)·Δ
        moved += rate / 4 * change / (1 + number - base) ** exponent
    updates = [
        Update(base_round=base, client=client, num_examples=100 * (client + 1), metrics={})
        for client, base in enumerate(bases)
    ]
    context = round_context(settings, number, updates, strategy)
    combined = strategy.combine(list(changes), weights_of(strategy, number, updates), model, None)
    new, state = strategy.step(model, combined, {}, context)
    assert new == pytest.approx(moved, rel=1e-12, abs=1e-12)
    assert state == {}


def test_whole_rounds_are_the_algorithm_written_down() -> None:
    """The clients' halves, from recorded models, and the server's half in a few lines."""
    settings = settings_for()
    found = run(settings)
    assert any(one.base_round < result.round for result in found.rounds[1:] for one in result.arrivals), "none is stale"
    single = settings.model_copy(update={"strategy_options": {"buffer_size": 1, "staleness_exponent": 0.0}})
    model = run(settings.model_copy(update={"num_rounds": 1})).models[1].astype(np.float64)
    models = {1: model.astype(np.float32)}
    for result in found.rounds[1:]:
        total = np.zeros_like(model)
        for one in result.arrivals:
            # A task of one update from this model moves it by Δ.
            begun = run(single.model_copy(update={"num_rounds": 1}))
            at = SimulationResult(models[one.base_round], {}, [*begun.rounds[:1]] * one.base_round)
            at.rounds[-1] = begun.rounds[0].__class__(one.base_round - 1, "", 0, None, {}, {})
            alone = single.model_copy(update={"num_rounds": one.base_round})
            moved = run(alone, resume=at, replay={one.base_round: [[one.base_round, one.client]]})
            change = moved.vector.astype(np.float64) - models[one.base_round]
            total += change / np.sqrt(1 + result.round - one.base_round)
        model = models[result.round] + total / 3
        models[result.round + 1] = model.astype(np.float32)
    assert found.vector == pytest.approx(model, abs=1e-6)


def test_a_model_whose_updates_are_never_stale_is_that_of_a_mean_of_as_many() -> None:
    """With K = M = 1 the newest model is always what a client began with."""
    found = run(settings_for(strategy_options={"buffer_size": 1, "concurrency": 1}))
    assert all(one.base_round == result.round for result in found.rounds[1:] for one in result.arrivals)


# ---------------------------------------------------------------- the clock


def test_the_clock_fills_buffers_with_clients_that_train_one_model_at_a_time() -> None:
    rounds = list(islice(arrivals_by_clock(7, 20, Buffering(size=4, concurrency=10, max_staleness=50)), 40))
    assert rounds == list(islice(arrivals_by_clock(7, 20, Buffering(4, 10, 50)), 40)), "the seed decides"
    assert all(len(arrivals) == 4 for arrivals in rounds)
    used = [one for arrivals in rounds for one in arrivals]
    assert len({one.client for one in used}) == 20
    staleness = [number - one.base_round for number, arrivals in enumerate(rounds, 1) for one in arrivals]
    assert min(staleness) == 0
    assert 1 < np.mean(staleness) < 5, "Little's law: M/K rounds pass while a client trains"


@pytest.mark.parametrize(("size", "concurrency"), [(4, 4), (3, 2), (1, 4)])
def test_no_client_of_the_clock_trains_twice_from_one_model(size: int, concurrency: int) -> None:
    """It would give the same update twice; nodes do not do it either."""
    rounds = list(islice(arrivals_by_clock(7, 4, Buffering(size, concurrency, max_staleness=1)), 60))
    used = [one for arrivals in rounds for one in arrivals]
    assert len(used) == 60 * size
    assert len(set(used)) == len(used)


def test_the_clock_uses_nothing_staler_than_allowed() -> None:
    rounds = list(islice(arrivals_by_clock(7, 20, Buffering(size=1, concurrency=10, max_staleness=3)), 60))
    staleness = {number - one.base_round for number, arrivals in enumerate(rounds, 1) for one in arrivals}
    assert staleness == {0, 1, 2, 3}


def test_nodes_are_given_their_own_clients_in_an_order_that_favours_none() -> None:
    placement = ((0, 30), (30, 6))
    chunks = drawn_chunks(3, 5, placement, 10)
    assert [chunk.id for chunk in chunks] == list(range(16))
    assert {chunk.clients[0] for chunk in chunks if chunk.node == 1} == set(range(30, 36))
    assert all(chunk.clients[0] < 30 for chunk in chunks if chunk.node == 0)
    firsts = [drawn_chunks(3, number, placement, 10)[0].clients[0] for number in range(300)]
    assert 12 < np.mean(firsts) < 17


def test_what_a_draw_costs_does_not_grow_with_the_population() -> None:
    """The memory shows it: an order of a million clients takes 8 MB, and ten of them next to nothing."""
    drawn_chunks(3, 1, ((0, 100),), 10)
    tracemalloc.start()
    try:
        chunks = drawn_chunks(3, 1, ((0, 10**6),), 10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len({chunk.clients for chunk in chunks}) == 10
    assert peak < 100_000


def test_a_client_that_begins_costs_the_clock_the_same_in_every_population() -> None:
    """It compares no clients with each other: only the heap of those that train is ordered."""
    sorts = 0

    def count(frame: FrameType, event: str, called: object) -> None:  # noqa: ARG001
        nonlocal sorts
        sorts += event == "c_call" and called is sorted

    sys.setprofile(count)
    try:
        (first,) = islice(arrivals_by_clock(7, 10**5, Buffering(100, 100, 5)), 1)
    finally:
        sys.setprofile(None)
    assert len({one.client for one in first}) == 100
    assert sorts == 0


# ---------------------------------------------------------------- the record


@pytest.mark.parametrize("workers", [1, 2])
def test_a_replay_along_the_record_gives_the_same_bytes(workers: int) -> None:
    settings = settings_for(transforms=["int8"])
    found = run(settings)
    again = run(settings.model_copy(update={"num_nodes": 1}), replay=record_of(found), workers=workers)
    assert again.digest == found.digest
    record = record_of(found)
    record["4"] = record["4"][::-1]
    assert run(settings, replay=record).rounds[3].digest == found.rounds[3].digest


def test_a_run_that_is_continued_is_one_run() -> None:
    settings = settings_for(num_rounds=8)
    half = run(settings.model_copy(update={"num_rounds": 4}))
    assert run(settings, resume=half).digest == run(settings).digest


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({}, "lacks what round 1 summed"),
        ({1: [[2, 0]]}, "round 1 used an update that began in round 2"),
        ({1: [[0, 0]]}, "began in round 0"),
        ({30: [[1, 0]]}, "round 30 used an update that began in round 1"),
    ],
)
def test_a_record_that_cannot_be_right_is_refused(record: dict[int, list[list[int]]], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        run(settings_for(), replay=record)


def test_the_kinds_of_record_are_not_mixed_up() -> None:
    with pytest.raises(BadInput, match="wait for their cohorts"):
        run(settings_for(strategy="fedavg", strategy_options={}), replay={1: [[1, 0]]})
    with pytest.raises(BadInput, match="replay says"):
        run(settings_for(), missing={1: [0]})


# ---------------------------------------------------------------- what does not combine


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        ({"sampler": "over_selection"}, "over_selection draws cohorts: choose uniform"),
        ({"sampler": "power_of_choice"}, "power_of_choice draws cohorts"),
        ({"screening": "record"}, "compares the updates of one round's model"),
        ({"attack": "sign_flip"}, "counts on attackers in each round's cohort"),
        ({"statistics": "local"}, "clients keep a state"),
        ({"strategy_options": {"buffer_size": 10}}, "waits for 10 updates in each round, and there are 9 clients"),
        ({"aggregation": "median"}, "fedbuff, median: the parts of a strategy with asynchronous rounds"),
        ({"strategy": "fedavg", "strategy_options": {}, "server_step": "fedbuff"}, "cannot be combined"),
    ],
)
def test_what_does_not_combine_is_refused_with_a_sentence(chosen: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        run(settings_for(**chosen))


@pytest.mark.parametrize(
    ("transforms", "problem"),
    [
        (["difference"], "it needs the model that each update started from"),
        (["difference", "topk"], "cannot be combined"),
        (["float16"], ""),
        (["int8"], ""),
    ],
)
def test_codecs_that_need_one_rounds_model_or_a_memory_are_refused(transforms: list[str], problem: str) -> None:
    settings = settings_for(transforms=transforms)
    if not problem:
        assert make_pipeline(settings, make_strategy(settings)).transforms
        return
    with pytest.raises(BadInput, match=problem):
        make_pipeline(settings, make_strategy(settings))


def test_what_is_stale_weighs_less_also_in_the_float32_of_a_round() -> None:
    """`aggregate` as the platform's worker calls it."""
    settings = settings_for(strategy_options={"buffer_size": 2})
    strategy = make_strategy(settings)
    model, ones = np.zeros(5, np.float32), np.ones(5, np.float32)
    updates = [Update(base_round=base, client=base, num_examples=1, metrics={}) for base in (4, 1)]
    out = np.empty_like(model)
    context = round_context(settings, 4, updates, strategy)
    assert aggregate(strategy, model, [ones, ones], weights_of(strategy, 4, updates), {}, out, {}, context=context)
    assert out == pytest.approx((1 + 0.5) / 2)
    assert Arrival(1, 0) != Arrival(1, 1)
