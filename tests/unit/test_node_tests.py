"""Models that are tested where the data is: through disasters, within deadlines, with numbers that nobody trusts."""

from __future__ import annotations

import numpy as np
import pytest
from plugin_support import INFO, UID, attempt, hello
from test_task_course import changed
from test_task_machine import SETTINGS, World, answers, plan_for, report_of, started

from fedsim.data.split import hold_out
from fedsim.errors import BadInput
from fedsim.evaluation import Estimate, EvaluationReport, combine, problem_of
from fedsim.learning.examples import DataSet, Examples
from fedsim.messages import TaskReport
from fedsim.settings import TaskSettings
from fedsim.state_machines import node_events as on_node
from fedsim.state_machines import task_events as on_server
from fedsim.state_machines.candidates import Impossible
from fedsim.state_machines.node import NodeMachine
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task import TaskMachine

ON_NODES = changed(evaluation="nodes")


# ---------------------------------------------------------------- disasters


@pytest.mark.parametrize("evaluation", ["nodes", "both"])
def test_disasters_record_the_same_numbers_once(evaluation: str, seeds: range) -> None:
    settings = changed(evaluation=evaluation, keep_best="accuracy", final_model="best")
    calm = World(settings, 0, faults=0)
    model = calm.run()
    assert set(calm.disk.node_tests) == {0, 2, 4, 6}
    assert all(record.missing == () for record in calm.disk.node_tests.values())
    crashes = 0
    for seed in seeds:
        world = World(settings, seed, faults=0.3)
        assert world.run(restores=True) == model, f"seed {seed}"
        assert world.disk.node_tests == calm.disk.node_tests, f"seed {seed}"
        crashes += world.crashes
    assert crashes > len(seeds), "the disasters must happen"


def test_a_task_that_only_nodes_test_needs_no_test_set_and_ends_by_their_mean(seeds: range) -> None:
    calm = World(ON_NODES, 0, faults=0)
    calm.run()
    means = {number: dict(calm.disk.tests[number])["accuracy"] for number in (2, 4)}
    sign = ">=" if means[4] > means[2] else "<="
    settings = changed(evaluation="nodes", stop_when=(f"accuracy {sign} {means[4]!r}",))
    for seed in seeds[:20]:
        world = World(settings, seed, faults=0.3)
        assert world.run() == World(settings, 0, faults=0).run()
        assert world.disk.testset == set()
        assert max(world.rosters) == 4


# ---------------------------------------------------------------- one machine


def in_round_three(settings: TaskSettings) -> tuple[TaskMachine, list[on_server.Action]]:
    """A machine that has committed round 2, and what it did then."""
    machine, _plan, sends = started(settings)
    actions: list[on_server.Action] = []
    for number in (1, 2):
        for update in answers(sends):
            machine.handle(update, number)
        actions = machine.handle(on_server.Aggregated(number, finite=True), number)
        sends = [action for action in actions if isinstance(action, on_server.SendGlobal)]
    return machine, actions


def reported(node: str, number: int) -> on_server.NodeTested:
    return on_server.NodeTested(report_of(node, number, "model"))


def test_nodes_that_answer_too_late_are_missing_and_hold_up_nothing() -> None:
    machine, actions = in_round_three(ON_NODES)
    nodes = machine.plan.nodes
    assert [action for action in actions if isinstance(action, on_server.OrderEvaluation)] == [
        on_server.OrderEvaluation(node, 2) for node in nodes
    ]
    assert any(isinstance(action, on_server.SendGlobal) for action in actions), "the next round does not wait"
    machine.handle(reported(nodes[0], 2), 3)
    assert machine.handle(reported(nodes[0], 2), 3) == [], "no number is taken twice"
    assert machine.wake_at == SETTINGS.round_timeout_seconds, "the initial model's"
    machine.handle(on_server.TimePassed(), SETTINGS.round_timeout_seconds + 2)
    late = machine.handle(reported(nodes[1], 2), SETTINGS.round_timeout_seconds + 3)
    assert late == [on_server.DiscardReport(nodes[1], 2)]


def test_a_round_is_recorded_with_those_that_reported_by_the_deadline() -> None:
    machine, _ = in_round_three(ON_NODES)
    nodes = machine.plan.nodes
    for node in nodes:
        machine.handle(reported(node, 0), 3)
    machine.handle(reported(nodes[2], 2), 3)
    actions = machine.handle(on_server.TimePassed(), SETTINGS.round_timeout_seconds + 2)
    record = next(action for action in actions if isinstance(action, on_server.RecordNodeTests))
    assert record == on_server.RecordNodeTests(2, (reported(nodes[2], 2).report,), (nodes[0], nodes[1]))


def test_a_node_that_forgot_the_task_is_ordered_again_and_one_that_failed_is_not_awaited() -> None:
    machine, _ = in_round_three(changed(evaluation="nodes", min_responses=0.3))
    nodes = machine.plan.nodes
    for node in nodes:
        machine.handle(reported(node, 0), 3)
    again = machine.handle(on_server.NodeReported(nodes[0], None), 3)
    assert on_server.OrderEvaluation(nodes[0], 2) in again
    machine.handle(reported(nodes[0], 2), 4)
    machine.handle(reported(nodes[1], 2), 4)
    failed = TaskReport(task=UID, state="failed", reason="no GPU")
    actions = machine.handle(on_server.NodeReported(nodes[2], failed), 5)
    record = next(action for action in actions if isinstance(action, on_server.RecordNodeTests))
    assert record.missing == (nodes[2],)


def test_a_node_trains_first_and_tests_each_model_once() -> None:
    machine = NodeMachine(plan_for(ON_NODES).assignment("a"), ())
    machine.begin()
    assert machine.handle(on_node.EvaluationOrdered(0)) == []
    machine.handle(on_node.Loaded(((4, 50),)))
    assert machine.handle(on_node.WorkersIdle(1)) == [on_node.TestModel(0)]
    assert machine.handle(on_node.EvaluationOrdered(0)) == []
    assert machine.handle(on_node.EvaluationOrdered(2)) == []
    assert machine.handle(on_node.ModelTested(0, "{}")) == [on_node.SendReport(0, "{}")]
    assert machine.handle(on_node.WorkersIdle(1)) == [on_node.TestModel(2)]


# ---------------------------------------------------------------- the plan


def test_where_no_node_shares_a_test_set_a_task_runs_on_their_own() -> None:
    secret = INFO.model_copy(update={"share_test": False})
    nothing = secret.model_copy(update={"num_held_out": 0, "num_test": 0})
    made = attempt(ON_NODES, {"a": hello("a", datasets=(secret,)), "b": hello("b", datasets=(nothing,))})
    assert isinstance(made, Plan)
    assert made.testset_from is None
    assert "b holds out no examples: models are not tested on its data" in made.notes
    assert [share.num_held_out for share in made.shares] == [secret.num_held_out, 0]
    none = attempt(ON_NODES, {"b": hello("b", datasets=(nothing,))})
    assert isinstance(none, Impossible)
    assert "validation_share" in none.reason


# ---------------------------------------------------------------- numbers


SHARES = {"loss": False, "accuracy": True}


def report(count: int = 10, **metrics: Estimate) -> EvaluationReport:
    return EvaluationReport(task=UID, node="a", round=2, num_examples=count, metrics=metrics)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (report(accuracy=Estimate(value=0.5, low=0.4, high=0.6), loss=Estimate(value=3)), ""),
        (report(11, accuracy=Estimate(value=0.5)), "it reports 11 examples, and announced 10"),
        (report(0), "it reports 0 examples, and announced 10"),
        (report(accuracy=Estimate(value=1.5)), "accuracy is not between 0 and 1"),
        (report(auc=Estimate(value=0.5)), "auc is not a metric of the objective"),
        (report(loss=Estimate(value=1, low=2, high=1)), "the confidence interval of loss ends before it begins"),
        (report().model_copy(update={"withheld": "few"}), "it withholds its numbers and reports some"),
        (report().model_copy(update={"round": 4}), "it is about round 4, and came as that of round 2"),
    ],
)
def test_a_report_that_cannot_be_right_is_refused(given: EvaluationReport, problem: str) -> None:
    assert problem_of(given, 2, 10, SHARES) == problem


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_not_finite_is_no_report(value: str) -> None:
    text = report(loss=Estimate(value=1.25)).model_dump_json().replace("1.25", value)
    with pytest.raises(ValueError, match="finite"):
        EvaluationReport.model_validate_json(text)


def test_the_mean_weights_nodes_by_their_examples_and_names_the_worst() -> None:
    found = combine(
        {
            "b": report(30, accuracy=Estimate(value=0.9, low=0.8, high=0.95), loss=Estimate(value=2.0)),
            "a": report(10, accuracy=Estimate(value=0.5, low=0.3, high=0.7), loss=Estimate(value=4.0)),
            "c": EvaluationReport(task=UID, node="c", round=2, withheld="few", metrics={}),
        },
        {"accuracy": True, "loss": False},
    )
    value, low, high = found["mean"]["accuracy"]
    assert value == pytest.approx(0.8)
    assert low == pytest.approx(0.8 - np.hypot(0.25 * 0.2, 0.75 * 0.1))
    assert high == pytest.approx(0.8 + np.hypot(0.25 * 0.2, 0.75 * 0.05))
    assert found["mean"]["loss"] == (2.5, None, None)
    assert found["worst"] == {"accuracy": ("a", 0.5), "loss": ("a", 4.0)}


def examples(seed: int, count: int) -> Examples:
    rng = np.random.default_rng(seed)
    return Examples(rng.normal(size=(count, 3)).astype(np.float32), rng.integers(2, size=count))


def held(train: Examples, share: float) -> set[bytes]:
    found = hold_out(DataSet(train, None, 2), share, "data")
    assert found.held_out is not None
    assert len(found.train) + len(found.held_out) == len(train)
    return {row.tobytes() for row in found.held_out.features}


def test_what_is_held_out_stays_so_when_examples_come_and_a_larger_share_adds_to_it() -> None:
    some, more = examples(0, 500), examples(1, 100)
    whole = Examples(np.concatenate([more.features, some.features]), np.concatenate([more.labels, some.labels]))
    before, after = held(some, 0.2), held(whole, 0.2)
    assert before == after & {row.tobytes() for row in some.features}
    assert 60 < len(before) < 140
    assert before < held(some, 0.4)


def test_a_share_that_leaves_one_side_empty_is_refused() -> None:
    with pytest.raises(BadInput, match="leaves none for training or validation"):
        held(examples(0, 2), 0.0001)
