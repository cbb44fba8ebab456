"""Phases of a task: extensions with deadlines, transition tables, and what is held back until it can be done."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import pytest
from test_task_course import changed, ending_after_four
from test_task_machine import SETTINGS, UID, World, answers, plan_for, started

from fedsim.learning.phases import Content, Phase, PhaseContext, Position
from fedsim.messages import TaskReport
from fedsim.state_machines import node_events as on_node
from fedsim.state_machines import task_events as on_server
from fedsim.state_machines.node import NODE_TRANSITIONS, NodeMachine
from fedsim.state_machines.phases import TASK_TRANSITIONS, ExtensionPhase, NodeQuery, TaskPhase
from fedsim.state_machines.policy import missed_the_end, removed_nodes
from fedsim.state_machines.round import ROUND_TRANSITIONS
from fedsim.state_machines.task import TaskMachine
from fedsim.state_machines.task_events import Restored
from fedsim.state_machines.transitions import IllegalTransitionError, TransitionTable

ANSWER = '{"count": 42}'


class StatisticsPhase(Phase):
    name = "statistics"

    def summary(self, answers: Mapping[str, Content]) -> str:
        return f"{sum(answer['count'] for answer in answers.values())} examples"


class UnmaskingPhase(Phase):
    name = "unmasking"
    position = Position.WITHIN_ROUND
    timeout_seconds = 30
    required = False

    def ask(self, context: PhaseContext) -> Content:
        return {"round": context.round, "known": sorted(context.answers)}


class ReleasePhase(Phase):
    name = "release"
    position = Position.AFTER_TRAINING
    timeout_seconds = 3600


def statistics() -> NodeQuery:
    return NodeQuery(StatisticsPhase())


def unmasking() -> NodeQuery:
    return NodeQuery(UnmaskingPhase())


def release() -> NodeQuery:
    return NodeQuery(ReleasePhase())


def request(node: str, phase: str, number: int, **content: object) -> on_server.RequestAnswer:
    return on_server.RequestAnswer(node, phase, number, json.dumps(content))


def done(phase: str, number: int, nodes: Iterable[str] = ("a", "b", "c")) -> on_server.CompletePhase:
    return on_server.CompletePhase(phase, number, tuple((node, ANSWER) for node in nodes))


def prepared(
    *extensions: ExtensionPhase, restored: Restored | None = None
) -> tuple[TaskMachine, list[on_server.Action]]:
    """A machine that has everything that round 1 needs, at time 0, and its newest actions."""
    plan = plan_for(SETTINGS)
    machine = TaskMachine(plan, restored or Restored(), own_testset=True, extensions=extensions)
    machine.begin(0)
    machine.handle(on_server.InitialModelMade(), 0)
    actions: list[on_server.Action] = []
    for share in plan.shares:
        report = TaskReport(task=UID, state="ready", num_examples=((share.num_clients, 50),))
        actions = machine.handle(on_server.NodeReported(share.node, report), 0)
    return machine, actions


def answer_all(machine: TaskMachine, phase: str, number: int, now: float) -> list[on_server.Action]:
    actions: list[on_server.Action] = []
    for node in machine.waiting_for:
        assert actions == [], "it waits for all"
        actions = machine.handle(on_server.PhaseAnswered(node, phase, number, ANSWER), now)
    return actions


def sends(actions: list[on_server.Action]) -> list[on_server.SendGlobal]:
    return [action for action in actions if isinstance(action, on_server.SendGlobal)]


def test_a_phase_before_training_holds_round_one_back_until_all_nodes_have_answered() -> None:
    machine, actions = prepared(statistics())
    nodes = machine.plan.nodes
    assert actions[-len(nodes) :] == [request(node, "statistics", 0) for node in nodes]
    assert not sends(actions)
    assert (machine.phase, machine.step, machine.waiting_for) == (TaskPhase.PREPARING, "statistics", nodes)
    assert machine.wake_at == StatisticsPhase.timeout_seconds
    complete, summary, *broadcasts = answer_all(machine, "statistics", 0, 1)
    assert complete == done("statistics", 0)
    assert summary == on_server.RecordEvent("phase", "statistics: 126 examples")
    assert sends(broadcasts) == broadcasts
    assert (machine.phase, machine.step) == (TaskPhase.TRAINING, "training")


def test_a_node_that_lost_the_request_is_asked_again_and_answers_of_another_phase_do_not_count() -> None:
    machine, _ = prepared(statistics())
    node = machine.plan.nodes[0]
    asked = request(node, "statistics", 0)
    assert machine.handle(on_server.NodeReported(node, None), 1) == [on_server.Assign(node), asked]
    machine.handle(on_server.PhaseAnswered(node, "unmasking", 0), 1)
    machine.handle(on_server.PhaseAnswered(node, "statistics", 7), 1)
    assert node in machine.waiting_for


def test_a_phase_whose_deadline_passes_ends_the_task_with_the_nodes_that_did_not_answer() -> None:
    machine, _ = prepared(statistics())
    assert machine.handle(on_server.TimePassed(), StatisticsPhase.timeout_seconds - 1) == []
    (finish,) = machine.handle(on_server.TimePassed(), StatisticsPhase.timeout_seconds)
    assert isinstance(finish, on_server.Finish)
    assert finish.reason == "statistics: no answer within 60 s from a, b, c"


def test_a_completed_phase_is_not_repeated_after_a_restart() -> None:
    restored = Restored(completed_phases=(done("statistics", 0),))
    machine, actions = prepared(statistics(), restored=restored)
    assert sends(actions)
    assert machine.step == "training"


def test_a_phase_within_a_round_runs_between_roster_and_aggregation_of_every_round() -> None:
    restored = Restored(completed_phases=(done("statistics", 0),))
    machine, actions = prepared(statistics(), unmasking(), restored=restored)
    for number in (1, 2):
        broadcasts = sends(actions)
        for event in answers(broadcasts):
            actions = machine.handle(event, number)
        roster, *requests = actions
        assert isinstance(roster, on_server.WriteRoster)
        asked = [request(node, "unmasking", number, round=number, known=["statistics"]) for node in "abc"]
        assert requests == asked
        assert (machine.phase, machine.step) == (TaskPhase.AGGREGATING, "unmasking")
        complete, aggregate = answer_all(machine, "unmasking", number, number)
        assert complete == done("unmasking", number)
        assert aggregate == on_server.AggregateRound(number, roster.updates)
        actions = machine.handle(on_server.Aggregated(number, finite=True), number)


def test_a_phase_may_continue_with_what_arrived_until_its_deadline() -> None:
    machine, actions = prepared(unmasking())
    for event in answers(sends(actions)):
        actions = machine.handle(event, 100)
    assert machine.wake_at == 100 + UnmaskingPhase.timeout_seconds
    record, complete, aggregate = machine.handle(on_server.TimePassed(), 130)
    reason = "unmasking: no answer within 30 s from a, b, c; the task goes on without"
    assert record == on_server.RecordEvent("phase_incomplete", reason)
    assert complete == done("unmasking", 1, ())
    assert isinstance(aggregate, on_server.AggregateRound)


def test_a_restart_within_a_phase_of_a_round_runs_the_phase_again() -> None:
    roster = on_server.WriteRoster(1, (), ())
    restored = Restored(committed=0, counts=(50,) * 12, roster=roster, kept=frozenset({0}), evaluated=frozenset({0}))
    machine = TaskMachine(plan_for(SETTINGS), restored, own_testset=True, extensions=[unmasking()])
    actions = machine.begin(0)
    assert request("a", "unmasking", 1, round=1, known=[]) in actions
    assert answer_all(machine, "unmasking", 1, 1)[-1] == on_server.AggregateRound(1, ())


def test_a_node_that_fails_is_not_waited_for_in_a_phase() -> None:
    settings = SETTINGS.model_copy(update={"min_responses": 0.3})
    restored = Restored(committed=0, counts=(50,) * 12, kept=frozenset({0}), evaluated=frozenset({0}))
    machine = TaskMachine(plan_for(settings), restored, own_testset=True, extensions=[statistics()])
    machine.begin(0)
    report = TaskReport(task=UID, state="failed", reason="no GPU")
    machine.handle(on_server.NodeReported("b", report), 1)
    assert machine.waiting_for == ("a", "c")
    actions = answer_all(machine, "statistics", 0, 1)
    assert {send.node for send in sends(actions)} <= {"a", "c"}


def test_a_phase_after_training_holds_the_final_model_back() -> None:
    last = SETTINGS.num_rounds
    only_last = frozenset({last})
    restored = Restored(committed=last, counts=(50,) * 12, kept=only_last, evaluated=only_last, saved=only_last)
    machine = TaskMachine(plan_for(SETTINGS), restored, own_testset=True, extensions=[release()])
    assert machine.begin(0) == [request(node, "release", last) for node in machine.plan.nodes]
    complete, *final = answer_all(machine, "release", last, 1)
    assert isinstance(complete, on_server.CompletePhase)
    assert final == [on_server.SendFinal(node, last) for node in machine.plan.nodes]


# ---------------------------------------------------------------- on a node


def test_a_node_answers_a_question_once_and_not_before_its_data_is_loaded() -> None:
    machine = NodeMachine(plan_for(SETTINGS).assignment("a"), ())
    machine.begin()
    asked = on_node.RequestArrived("statistics", 0)
    assert machine.handle(asked) == machine.handle(asked) == []
    actions = machine.handle(on_node.Loaded(((4, 50),)))
    assert actions[-2:] == [on_node.Report(), on_node.AnswerRequest("statistics", 0)]
    assert machine.handle(asked) == []
    answered = on_node.Answered("statistics", 0, ANSWER)
    assert machine.handle(answered) == [on_node.SendAnswer("statistics", 0, ANSWER)]
    assert machine.handle(on_node.RequestArrived("unmasking", 1)) == [on_node.AnswerRequest("unmasking", 1)]
    machine.handle(on_node.Failed("the GPU is gone"))
    assert machine.handle(on_node.RequestArrived("unmasking", 2)) == []


# ---------------------------------------------------------------- what is held back


def test_a_checkpoint_waits_for_the_evaluation_of_its_round() -> None:
    restored = Restored(
        committed=3, counts=(50,) * 12, kept=frozenset({3}), evaluated=frozenset({2}), testset_parts=frozenset({"data"})
    )
    settings = SETTINGS.model_copy(update={"evaluate_every": 3, "save_every": 3})
    machine = TaskMachine(plan_for(settings), restored, own_testset=False)
    assert not {type(action) for action in machine.begin(0)} & {on_server.Save, on_server.EvaluateRound}
    assert machine.handle(on_server.TestsetPartArrived("b", "label"), 1) == [], "only one node was asked"
    evaluate, *broadcasts = machine.handle(on_server.TestsetPartArrived("a", "label"), 1)
    assert evaluate == on_server.EvaluateRound(3)
    assert sends(broadcasts) == broadcasts
    assert machine.handle(on_server.Evaluated(3), 2) == [on_server.Save(3)]
    assert machine.handle(on_server.Evaluated(3), 3) == []


def test_a_snapshot_continues_like_the_machine_that_it_was_taken_from() -> None:
    machine, plan, broadcasts = started(SETTINGS.model_copy(update={"min_responses": 0.3}))
    report = TaskReport(task=UID, state="failed", reason="no GPU")
    for event in answers(broadcasts):
        machine.handle(event, 1)
        assert machine.snapshot() is None
    machine.handle(on_server.NodeReported("b", report), 1)
    machine.handle(on_server.Aggregated(1, finite=True), 2)
    restored = machine.snapshot()
    assert restored is not None
    again = TaskMachine(plan, restored, own_testset=True)
    again.begin(2)
    assert again.waiting_for == machine.waiting_for
    assert again.wake_at == machine.wake_at
    later: list[on_server.Event] = [on_server.NodeReported("b", report), on_server.Evaluated(0)]
    later += [on_server.NodeReported("a", None), on_server.TimePassed()]
    for event in later:
        assert again.handle(event, 3) == machine.handle(event, 3)


# ---------------------------------------------------------------- tables and policy


def test_a_move_that_is_not_in_the_table_is_an_error() -> None:
    assert TASK_TRANSITIONS.move(TaskPhase.TRAINING, TaskPhase.TRAINING, "TimePassed") is TaskPhase.TRAINING
    with pytest.raises(IllegalTransitionError, match="TimePassed must not move from closing to training"):
        TASK_TRANSITIONS.move(TaskPhase.CLOSING, TaskPhase.TRAINING, "TimePassed")


@pytest.mark.parametrize(
    ("table", "events"),
    [(TASK_TRANSITIONS, on_server.Event), (NODE_TRANSITIONS, on_node.Event)],
    ids=["task", "node"],
)
def test_the_tables_name_only_events_that_exist(table: TransitionTable, events: object) -> None:
    known = {event.__name__ for event in events.__args__}
    assert {trigger for row in table.rows for trigger in row.triggers} <= known


def test_every_row_of_a_table_is_taken_in_disasters_or_ends_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: set[tuple[str, str]] = set()
    for table in (TASK_TRANSITIONS, NODE_TRANSITIONS, ROUND_TRANSITIONS):

        def move(source: str, target: str, trigger: str, move: object = table.move) -> object:
            taken.add((source, target))
            return move(source, target, trigger)

        monkeypatch.setattr(table, "move", move)
    expected = {(row.source, row.target) for row in TASK_TRANSITIONS.rows if row.target is not TaskPhase.ENDED}
    expected.add((TaskPhase.CLOSING, TaskPhase.ENDED))
    tasks = SETTINGS, changed(stop_when=(ending_after_four(),))
    for seed in range(400):
        if expected <= taken:
            break
        World(tasks[seed % 2], seed, faults=0.3).run()
    assert expected <= taken


def test_a_node_that_was_removed_from_the_configuration_is_named() -> None:
    plan = plan_for(SETTINGS)
    assert removed_nodes(plan, ["a", "b", "c", "d"]) is None
    assert removed_nodes(plan, ["a"]) == "b, c took part, but server.yml does not name it any more"


def test_only_a_node_that_works_on_a_task_that_is_over_missed_its_end() -> None:
    training, closing = (TaskReport.model_validate({"task": UID, "state": state}) for state in ("ready", "closing"))
    assert missed_the_end(training, active=False, final_pending=False)
    assert not missed_the_end(training, active=True, final_pending=False)
    assert not missed_the_end(training, active=False, final_pending=True)
    assert not missed_the_end(closing, active=False, final_pending=False)
