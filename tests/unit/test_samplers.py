"""Samplers against their papers, and what of them survives: the draws of a restarted server, a replay of a record."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from plugin_support import attempt, hello, planned
from test_web_forms import KNOWN

from fedsim.data import DataSet, Examples
from fedsim.errors import BadInput
from fedsim.learning.partitions import make_partition
from fedsim.learning.samplers import Known, last_losses, make_sampler
from fedsim.learning.simulate import simulate
from fedsim.messages import TaskReport
from fedsim.settings import TaskSettings
from fedsim.state_machines import task_events as events
from fedsim.state_machines.candidates import Impossible
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task import TaskMachine
from fedsim.update import TRAIN_LOSS, Update
from fedsim.web.catalogue import check_settings
from fedsim.web.errors import Fault

pytestmark = pytest.mark.usefixtures("deterministic_torch")


def draw(settings: TaskSettings, number: int, known: Known) -> tuple[int, ...]:
    sampler = make_sampler(settings)
    return sampler.draw_known(settings.seed, number, settings.num_clients, settings.cohort_size, known)


# ---------------------------------------------------------------- the papers


def test_by_size_draws_clients_by_their_share_of_the_examples() -> None:
    sizes = [10, 20, 30, 40]
    one = TaskSettings(sampler="by_size", num_clients=4, fraction_train=0.25)
    counts = Counter(draw(one, number, Known(sizes))[0] for number in range(1, 4001))
    for client, size in enumerate(sizes):
        assert counts[client] / 4000 == pytest.approx(size / 100, abs=0.03)
    two = one.model_copy(update={"fraction_train": 0.5})
    pairs = Counter(draw(two, number, Known(sizes)) for number in range(1, 4001))
    p = np.array(sizes) / 100
    wanted = p[2] * p[3] / (1 - p[2]) + p[3] * p[2] / (1 - p[3])  # one after the other, without replacement
    assert pairs[2, 3] / 4000 == pytest.approx(wanted, abs=0.03)


def test_power_of_choice_takes_the_largest_losses_of_d_candidates() -> None:
    settings = TaskSettings(sampler="power_of_choice", sampler_options={"d": 10}, num_clients=10, fraction_train=0.3)
    losses = (0.5, 2.0, None, 0.1, 1.0, 3.0, 0.2, 0.3, 0.4, 1.5)
    for number in range(1, 20):
        assert draw(settings, number, Known([7] * 10, losses)) == (1, 2, 5), "the one without a loss comes first"
    some = settings.model_copy(update={"sampler_options": {"d": 4}})
    cohorts = [draw(some, number, Known([7] * 10, losses)) for number in range(1, 500)]
    chosen = Counter(client for cohort in cohorts for client in cohort)
    assert chosen[3] == 0, "of four candidates the least loss is never among the three largest"
    assert chosen[5] > chosen[0] > chosen[6]
    first = Counter(client for number in range(1, 2000) for client in draw(settings, number, Known([7] * 10)))
    assert all(count == pytest.approx(600, abs=90) for count in first.values()), "equal losses are drawn at random"


def test_over_selection_draws_more() -> None:
    settings = TaskSettings(sampler="over_selection", num_clients=100, fraction_train=0.1)
    assert len(draw(settings, 1, Known())) == 13
    assert len(draw(settings.model_copy(update={"fraction_train": 0.9}), 1, Known())) == 100


def test_a_schedule_is_followed_and_begins_again() -> None:
    settings = TaskSettings(
        sampler="schedule", sampler_options={"cohorts": "4 1, 0 2"}, num_clients=5, fraction_train=0.4
    )
    assert [draw(settings, number, Known()) for number in range(1, 5)] == [(1, 4), (0, 2), (1, 4), (0, 2)]


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"sampler": "schedule", "sampler_options": {"cohorts": ["1 2"]}}, "round 1 has 2 clients, and rounds have 10"),
        ({"sampler": "schedule", "sampler_options": {"cohorts": []}}, "no cohort is listed"),
        (
            {"sampler": "schedule", "sampler_options": {"cohorts": ["7 100"]}, "fraction_train": 0.02},
            "has client 100, and clients are 0 to 99",
        ),
        ({"sampler": "power_of_choice", "sampler_options": {"d": 9}}, "d is 9, and a round has 10 of 100 clients"),
    ],
)
def test_cohorts_that_cannot_be_drawn_are_refused_at_submission(chosen: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Fault) as refused:
        check_settings({"dataset": "mnist", **chosen}, KNOWN)
    assert sentence in str(refused.value.problems["sampler"])
    with pytest.raises(BadInput, match=sentence):
        simulate(TaskSettings(model="logistic", partition="iid", **chosen), data())


def test_a_draw_by_what_is_known_later_is_refused_where_an_institution_counts_clients() -> None:
    settings = TaskSettings(sampler="by_size", num_clients=10, fraction_train=0.5, num_nodes=1)
    plan = attempt(settings, [hello("a", min_clients=2)])
    assert isinstance(plan, Impossible)
    assert "the sampler by_size draws by what is known once the task runs" in plan.reason


# ---------------------------------------------------------------- in a task


def data() -> DataSet:
    rng = np.random.default_rng(6)
    labels = rng.integers(3, size=300).astype(np.int64)
    features = rng.normal(size=(300, 5)).astype(np.float32) + labels[:, None].astype(np.float32)
    return DataSet(Examples(features, labels), None, 3)


def task(**changes: Any) -> TaskSettings:
    chosen: dict[str, Any] = {"model": "logistic", "partition": "dirichlet", "num_clients": 12, "fraction_train": 0.5}
    chosen |= {"local_epochs": 1, "local_learning_rate": 0.2, "num_rounds": 5, "min_partition_size": 2, **changes}
    return TaskSettings(**chosen)


ALL = ("by_size", "power_of_choice", "over_selection", "schedule")


def with_sampler(name: str, **changes: Any) -> TaskSettings:
    options = {"cohorts": ["0 1 2 3 4 5", "6 7 8 9 10 11"]} if name == "schedule" else {}
    return task(sampler=name, sampler_options=options, **changes)


@pytest.mark.parametrize("strategy", ["fedavg", "median"])
@pytest.mark.parametrize("name", ALL)
def test_a_task_that_is_resumed_draws_the_same_cohorts(name: str, strategy: str) -> None:
    whole = simulate(with_sampler(name, strategy=strategy), data(), chunk_clients=2)
    half = simulate(with_sampler(name, strategy=strategy, num_rounds=2), data(), chunk_clients=2)
    rest = simulate(with_sampler(name, strategy=strategy), data(), chunk_clients=2, resume=half)
    assert rest.digest == whole.digest != simulate(task(strategy=strategy), data(), chunk_clients=2).digest


def test_of_more_clients_the_first_count_and_a_record_of_the_others_replays_them() -> None:
    settings = with_sampler("over_selection", strategy="median")
    sizes = make_partition(settings, data().train.labels).num_examples
    cohorts = {number: draw(settings, number, Known()) for number in range(1, 6)}
    late = {str(number): cohort[6:] for number, cohort in cohorts.items()}
    run = simulate(settings, data())
    assert [one.num_examples for one in run.rounds[1:]] == [sum(map(sizes, cohort[:6])) for cohort in cohorts.values()]
    assert simulate(settings, data(), missing=late).digest == run.digest
    others = {str(number): cohort[:2] for number, cohort in cohorts.items()}
    assert simulate(settings, data(), missing=others).digest != run.digest
    assert simulate(settings, data(), missing={}).rounds[1].num_examples == sum(map(sizes, cohorts[1]))


# ---------------------------------------------------------------- on the server


NEW = events.Restored()


def machine(settings: TaskSettings, restored: events.Restored = NEW) -> tuple[Plan, TaskMachine]:
    plan = planned(hello("a"), hello("b"), settings=settings)
    return plan, TaskMachine(plan, restored, own_testset=True)


COUNTS = tuple(10 + client % 4 for client in range(12))


def report(plan: Plan, node: str) -> TaskReport:
    share = next(share for share in plan.shares if share.node == node)
    counts = COUNTS[share.first_client : share.first_client + share.num_clients]
    return TaskReport(task=plan.task, state="ready", num_examples=tuple((1, count) for count in counts))


def came(broadcasts: list[events.SendGlobal], number: int) -> list[events.Event]:
    """The updates of the round's chunks, whose losses are those of their first clients."""
    return [
        events.UpdateArrived(
            Update(
                base_round=number,
                chunk=chunk.id,
                num_clients=len(chunk.clients),
                num_examples=1,
                metrics={TRAIN_LOSS: float(chunk.clients[0] + number)},
                node=sent.node,
            )
        )
        for sent in broadcasts
        for chunk in sent.broadcast.chunks
    ]


def cohorts_of(
    settings: TaskSettings, restart_before: int = 0
) -> tuple[list[tuple[int, ...]], tuple[float | None, ...]]:
    """The cohorts that the server's machine sends; before one round it is made again from what is stored."""
    plan, server = machine(settings)
    actions = [*server.begin(0), *server.handle(events.InitialModelMade(), 0)]
    actions += server.handle(events.Evaluated(0), 0)
    for node in plan.nodes:
        actions += server.handle(events.NodeReported(node, report(plan, node)), 0)
    found, losses = [], ()
    for number in range(1, settings.num_rounds + 1):
        sent = [action for action in actions if isinstance(action, events.SendGlobal) and action.round == number]
        found.append(tuple(client for one in sent for chunk in one.broadcast.chunks for client in chunk.clients))
        arrived = came(sent, number)
        if number == restart_before:
            restored = events.Restored(number - 1, COUNTS, kept=frozenset({number - 1}), losses=losses)
            _, server = machine(settings, restored)
            again = [action for action in server.begin(0) if isinstance(action, events.SendGlobal)]
            assert again == sent, "the same cohort in the same chunks"
        actions = [action for event in arrived for action in server.handle(event, 0)]
        (roster,) = [action for action in actions if isinstance(action, events.WriteRoster)]
        assert roster.cohort == (found[-1] if settings.sampler != "uniform" else ())
        actions = server.handle(events.Aggregated(number, finite=True), 0)
        (commit,) = [action for action in actions if isinstance(action, events.Commit)]
        losses = commit.losses
    return found, losses


@pytest.mark.parametrize("name", ["by_size", "power_of_choice"])
def test_a_restarted_server_draws_the_same_cohorts(name: str) -> None:
    settings = with_sampler(name, num_nodes=2)
    cohorts, losses = cohorts_of(settings)
    assert len(set(cohorts)) > 1
    assert cohorts == cohorts_of(settings, restart_before=4)[0]
    assert bool(losses) == (name == "power_of_choice")


def test_nothing_more_is_recorded_for_a_uniform_draw() -> None:
    assert cohorts_of(task(num_nodes=2))[1] == ()


def test_a_round_closes_when_as_many_as_the_cohort_have_answered() -> None:
    plan, server = machine(task(sampler="over_selection", sampler_options={"epsilon": 1.0}, num_nodes=2))
    actions = [*server.begin(0), *server.handle(events.InitialModelMade(), 0), *server.handle(events.Evaluated(0), 0)]
    for node in plan.nodes:
        actions += server.handle(events.NodeReported(node, report(plan, node)), 0)
    sent = [action for action in actions if isinstance(action, events.SendGlobal)]
    arrived = came(sent, 1)[::-1]
    rosters: list[events.WriteRoster] = []
    answered = 0
    while not rosters:
        event = arrived.pop(0)
        assert isinstance(event, events.UpdateArrived)
        answered += event.update.num_clients
        rosters = [action for action in server.handle(event, 0) if isinstance(action, events.WriteRoster)]
    assert answered >= 6
    assert arrived, "the others are not waited for"
    late = [client for one in sent for chunk in one.broadcast.chunks for client in chunk.clients]
    counted = [client for update in rosters[0].updates for client in plan.chunks(1)[update.chunk].clients]
    assert rosters[0].missing == tuple(sorted(set(late) - set(counted)))
    _, again = machine(plan.settings, events.Restored(0, COUNTS, rosters[0], kept=frozenset({0})))
    aggregated = [action for action in again.begin(0) if isinstance(action, events.AggregateRound)]
    assert aggregated == [events.AggregateRound(1, rosters[0].updates)], "a restarted server uses the roster"
    assert not any(isinstance(action, events.WriteRoster) for event in arrived for action in again.handle(event, 0))


def test_a_chunks_loss_is_that_of_its_clients() -> None:
    update = Update(base_round=1, num_examples=1, metrics={TRAIN_LOSS: 2.0})
    silent = Update(base_round=2, num_examples=1)
    after = last_losses((), [(update, (0, 2))], 4)
    assert after == (2.0, None, 2.0, None)
    assert last_losses(after, [(silent, (0, 1))], 4) == after
