"""What the course of a task decides: an early end, the best model, a warning; the same through any disaster."""

from __future__ import annotations

import heapq

import pytest
from plugin_support import UID
from test_task_machine import SETTINGS, World, answers, continuing, plan_for, started

from fedsim.errors import BadInput
from fedsim.messages import TaskReport
from fedsim.settings import TaskSettings, parse_settings
from fedsim.state_machines import task_events as on_server
from fedsim.state_machines.task import TaskMachine
from fedsim.state_machines.task_events import Restored, Totals
from fedsim.stop_conditions import best_round, directions, parse_condition, reason_to_stop


def changed(settings: TaskSettings = SETTINGS, **changes: object) -> TaskSettings:
    return settings.model_copy(update=changes)


def score(world: World, number: int) -> float:
    value = dict(world.disk.tests[number])["accuracy"]
    assert value is not None
    return value


def run_calm(settings: TaskSettings) -> World:
    world = World(settings, 0, faults=0)
    world.run()
    return world


# ---------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("accuracy>=.97", "accuracy >= 0.97"),
        ("  loss <=  1e-3 ", "loss <= 0.001"),
        ("patience  10 loss", "patience 10 loss"),
        ("time 3600", "time 3600"),
        ("time 0.30000000000000004", "time 0.30000000000000004"),
    ],
)
def test_a_condition_has_one_form_that_is_read_back(given: str, meant: str) -> None:
    assert str(parse_condition(given)) == meant
    assert parse_condition(meant) == parse_condition(given)


@pytest.mark.parametrize(
    "given",
    ["", "accuracy", "accuracy > 0.9", "accuracy >= nan", "patience 0 loss", "patience loss", "time 0", "time -1"],
)
def test_another_form_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="must be like"):
        parse_condition(given)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"stop_when": "accuracy >= 0.9, precision >= 0.5"}, "stop_when: precision is not a metric of the objective"),
        ({"keep_best": "confusion"}, "keep_best: confusion is not a metric"),
        ({"final_model": "best"}, "name it with keep_best"),
        ({"objective": "regression", "keep_best": "accuracy"}, "keep_best: accuracy is not a metric"),
        ({"max_missing_share": "1.5"}, "max_missing_share"),
    ],
)
def test_a_setting_that_cannot_be_decided_is_refused_at_submission(given: dict[str, object], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        parse_settings(given)


def test_the_first_condition_that_holds_gives_the_reason() -> None:
    tests: list[tuple[int, dict[str, float | None]]] = [
        (number, {"loss": loss}) for number, loss in ((2, 3.0), (4, 1.0), (6, None), (8, 1.0), (10, 2.0))
    ]
    known = directions(())

    def reason(*texts: str, seconds: float = 0.0) -> str:
        return reason_to_stop(map(parse_condition, texts), tests, seconds, known)

    assert reason("loss <= 1", "patience 4 loss") == ""
    assert reason("patience 3 loss") == "loss has not improved in 3 tests since round 4, which meets `patience 3 loss`"
    assert reason("loss <= 2", "patience 3 loss").startswith("loss is 2, ")
    assert reason("time 60", seconds=59.9) == ""
    assert reason("time 60", seconds=60) == "60 s had passed at round 10, which meets `time 60`"
    assert best_round(tests, "loss", higher=False) == 4
    assert best_round(tests, "accuracy", higher=True) is None


# ---------------------------------------------------------------- an early end


def ending_after_four() -> str:
    """A condition that holds after round 4 and not before."""
    world = run_calm(SETTINGS)
    sign = ">=" if score(world, 4) > score(world, 2) else "<="
    return f"accuracy {sign} {score(world, 4)!r}"


def test_disasters_end_after_the_same_round_with_the_same_model(seeds: range) -> None:
    settings = changed(stop_when=(ending_after_four(),))
    calm = World(settings, 0, faults=0)
    model = calm.run()
    assert calm.disk.outcome is not None
    assert calm.disk.outcome.reason.startswith("4 of 6 rounds done: accuracy is ")
    crashes = 0
    for seed in seeds:
        world = World(settings, seed, faults=0.3)
        assert world.run(restores=True) == model, f"seed {seed}"
        assert world.disk.outcome is not None
        assert world.disk.outcome.reason.startswith(calm.disk.outcome.reason), f"seed {seed}"
        assert max(world.rosters) == 4, f"seed {seed}: no round is trained after the last one"
        assert 4 in world.disk.saved, "the last round is saved"
        crashes += world.crashes
    assert crashes > len(seeds), "the disasters must happen"


def test_an_early_end_leaves_every_node_with_the_final_model() -> None:
    world = World(changed(stop_when=(ending_after_four(),)), 1, faults=0)
    final = world.run()
    for _ in range(100):
        if not world.queue or all(disk.assignment is None for disk in world.node_disks.values()):
            break
        world.now, _, do = heapq.heappop(world.queue)
        do()
    assert [disk.final for disk in world.node_disks.values()] == [final] * 3


def in_round_two(settings: TaskSettings) -> tuple[TaskMachine, list[on_server.Action]]:
    """A machine that has just committed round 2 of `settings`, at time 20, and its answers."""
    machine, _plan, sends = started(settings)
    machine.handle(on_server.Evaluated(0, (("accuracy", 0.1),)), 0)
    actions: list[on_server.Action] = []
    for number in (1, 2):
        for update in answers(sends):
            machine.handle(update, number * 10)
        actions = machine.handle(on_server.Aggregated(number, finite=True), number * 10)
        sends = [action for action in actions if isinstance(action, on_server.SendGlobal)]
    return machine, actions


def test_the_next_round_waits_for_a_test_that_may_end_the_task() -> None:
    assert any(isinstance(action, on_server.SendGlobal) for action in in_round_two(SETTINGS)[1])
    machine, actions = in_round_two(changed(stop_when=("accuracy >= 0.5",)))
    assert not any(isinstance(action, on_server.SendGlobal) for action in actions)
    assert machine.step == "evaluating"
    opened = machine.handle(on_server.Evaluated(2, (("accuracy", 0.4),)), 21)
    assert {type(action) for action in opened} >= {on_server.SendGlobal}
    machine, _ = in_round_two(changed(stop_when=("accuracy >= 0.5",)))
    ended = machine.handle(on_server.Evaluated(2, (("accuracy", 0.5),)), 21)
    assert on_server.Save(2) in ended
    assert not any(isinstance(action, on_server.SendGlobal) for action in ended)
    assert machine.last_round == 2
    sent = machine.handle(on_server.Saved(2), 22)
    assert [action for action in sent if isinstance(action, on_server.SendFinal)] == [
        on_server.SendFinal(node, 2) for node in machine.plan.nodes
    ]


def test_a_node_that_reports_while_the_test_is_awaited_changes_nothing() -> None:
    machine, _ = in_round_two(changed(stop_when=("accuracy >= 0.5",)))
    share = machine.plan.shares[0]
    report = TaskReport(task=UID, state="ready", num_examples=((share.num_clients, 50),), round=2)
    assert machine.handle(on_server.NodeReported(share.node, report), 21) == []


def test_the_time_that_counts_is_that_of_the_commit() -> None:
    machine, actions = in_round_two(changed(stop_when=("time 20",)))
    commit = next(action for action in actions if isinstance(action, on_server.Commit))
    assert commit.totals.seconds == 20
    machine.handle(on_server.Evaluated(2, (("accuracy", 0.4),)), 500)
    assert machine.last_round == 2
    machine, _ = in_round_two(changed(stop_when=("time 20.5",)))
    machine.handle(on_server.Evaluated(2, (("accuracy", 0.4),)), 500)
    assert machine.last_round == SETTINGS.num_rounds


def test_a_restart_after_the_recorded_test_ends_the_task_with_the_same_reason() -> None:
    restored = Restored(
        committed=2,
        counts=(50,) * 12,
        kept=frozenset({2}),
        evaluated=frozenset({2}),
        tests=((2, (("accuracy", 0.6),)),),
    )
    machine = TaskMachine(plan_for(changed(stop_when=("accuracy >= 0.5",))), restored, own_testset=True)
    assert machine.step == "closing"
    assert on_server.Save(2) in machine.begin(0)
    sends = machine.handle(on_server.Saved(2), 1)
    for send in sends:
        assert isinstance(send, on_server.SendFinal)
        actions = machine.handle(on_server.FinalDelivered(send.node), 2)
    assert actions == [
        on_server.Finish("completed", "2 of 6 rounds done: accuracy is 0.6, which meets `accuracy >= 0.5`")
    ]


def test_further_rounds_of_a_task_that_ended_early_are_not_ended_by_what_was_before() -> None:
    settings = changed(stop_when=("accuracy >= 0",))
    world = continuing(settings, 2, 0, faults=0)
    world.run()
    assert world.disk.outcome is not None
    assert world.disk.outcome.reason.startswith("4 of 6 rounds done"), "the next test ends it, not the last one"


# ---------------------------------------------------------------- the best model


def test_disasters_release_the_same_best_model(seeds: range) -> None:
    settings = changed(keep_best="accuracy", final_model="best", evaluate_every=1, save_every=4)
    calm = World(settings, 0, faults=0)
    model = calm.run()
    best = max(range(1, 7), key=lambda number: score(calm, number))
    assert calm.disk.outcome is not None
    assert calm.disk.outcome.released == (None if best == 6 else best)
    assert calm.disk.saved == {best, 4, 6}, "surpassed ones are removed, others stay"
    for seed in seeds:
        world = World(settings, seed, faults=0.3)
        assert world.run(restores=True) == model, f"seed {seed}"
        assert world.disk.best == best
        assert world.disk.saved >= {best, 4, 6}, f"seed {seed}"


def test_a_checkpoint_is_removed_once_a_better_one_is_saved_unless_it_is_due() -> None:
    machine, _ = in_round_two(changed(keep_best="accuracy", evaluate_every=1, save_every=6))
    first = machine.handle(on_server.Evaluated(1, (("accuracy", 0.4),)), 21)
    assert [action for action in first if not isinstance(action, on_server.ClearModel)] == [
        on_server.KeepBest(1),
        on_server.Save(1),
    ]
    second = machine.handle(on_server.Evaluated(2, (("accuracy", 0.5),)), 22)
    assert second[:2] == [on_server.KeepBest(2), on_server.Save(2)]
    assert on_server.ClearModel(1) not in second, "it is being saved"
    assert machine.handle(on_server.Saved(1), 23) == [on_server.ClearModel(1)]
    assert machine.handle(on_server.Saved(2), 24) == [on_server.RemoveCheckpoint(1, 2)]


# ---------------------------------------------------------------- missing examples


def finished(settings: TaskSettings, totals: Totals) -> on_server.Finish:
    last = frozenset({settings.num_rounds})
    restored = Restored(
        committed=settings.num_rounds, counts=(50,) * 12, kept=last, evaluated=last, saved=last, totals=totals
    )
    machine = TaskMachine(plan_for(settings), restored, own_testset=True)
    machine.begin(0)
    actions: list[on_server.Action] = []
    for node in machine.plan.nodes:
        actions = machine.handle(on_server.FinalDelivered(node), 1)
    (finish,) = actions
    assert isinstance(finish, on_server.Finish)
    return finish


def test_a_task_that_lacked_more_examples_than_it_may_ends_completed_with_a_warning() -> None:
    few = finished(changed(max_missing_share=0.1), Totals(0, 100, 1000))
    assert (few.outcome, few.warning) == ("completed", "")
    many = finished(changed(max_missing_share=0.1), Totals(0, 101, 1000))
    assert many.outcome == "completed"
    assert many.warning.startswith(
        "10.1% of the examples that the rounds were to use were missing, more than the 10.0%"
    )


def test_the_share_of_missing_examples_is_committed_with_its_round() -> None:
    machine, _plan, sends = started(changed(min_responses=0.3))
    came = answers(sends)
    for update in came[:-1]:
        machine.handle(update, 1)
    roster, _ = machine.handle(on_server.TimePassed(), 600)
    assert isinstance(roster, on_server.WriteRoster)
    actions = machine.handle(on_server.Aggregated(1, finite=True), 601)
    commit = next(action for action in actions if isinstance(action, on_server.Commit))
    assert commit.missing_share == len(roster.missing) / SETTINGS.cohort_size > 0
    assert commit.totals == Totals(0, len(roster.missing) * 50, SETTINGS.cohort_size * 50)


def test_clients_that_were_chosen_in_excess_are_not_missing() -> None:
    machine, _plan, sends = started(changed(sampler="over_selection", sampler_options={"epsilon": 0.5}))
    sent = answers(sends)
    for update in sent:
        machine.handle(update, 1)
        if machine.step == "aggregating":
            break
    actions = machine.handle(on_server.Aggregated(1, finite=True), 2)
    commit = next(action for action in actions if isinstance(action, on_server.Commit))
    assert commit.missing_share == 0
