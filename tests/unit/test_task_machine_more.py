"""Edge cases of the state machines: restarts between any two steps, lost nodes, passing time."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from plugin_support import INFO, attempt, hello, planned
from test_task_machine import came

from fedsim.config import Limits
from fedsim.messages import (
    MAX_RUNS,
    MAX_TEXT,
    Assignment,
    Broadcast,
    Chunk,
    TaskReport,
    Uplink,
)
from fedsim.settings import TaskSettings
from fedsim.spool.files import FileHeader, FileId, Kind
from fedsim.state_machines import node_events as on_node
from fedsim.state_machines import task_events as on_server
from fedsim.state_machines.candidates import Impossible, Waiting
from fedsim.state_machines.final_delivery import FINAL_DELIVERY_SECONDS
from fedsim.state_machines.node import NodeMachine
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.round import RoundCollector
from fedsim.state_machines.task import TaskMachine
from fedsim.state_machines.task_events import Restored
from fedsim.wire.protocol.frames import FrameType, encode, room_for_meta

UID = "1" * 32
SETTINGS = TaskSettings(num_clients=4, fraction_train=1, num_rounds=3, evaluate_every=2, save_every=3)


def two_nodes(settings: TaskSettings = SETTINGS) -> Plan:
    return planned(hello("a"), hello("b"), settings=settings, task=UID)


def restored(**changes: object) -> TaskMachine:
    """A machine resumed with every round committed, tested and saved, unless specified otherwise."""
    found: dict[str, object] = {
        "committed": 3,
        "counts": (50,) * 4,
        "kept": frozenset({3}),
        "evaluated": frozenset({2, 3}),
        "saved": frozenset({3}),
        **changes,
    }
    return TaskMachine(two_nodes(), Restored(**found), own_testset=True)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the server


def test_a_deadline_that_passed_in_vain_does_not_wake_again() -> None:
    machine = restored(committed=0, kept=frozenset({0}), evaluated=frozenset({0}), saved=frozenset())
    machine.begin(0)
    deadline = machine.wake_at
    assert deadline == SETTINGS.round_timeout_seconds
    assert machine.handle(on_server.TimePassed(), deadline) == []
    assert machine.wake_at is None, "a daemon that waits for a time in the past never sleeps"
    assert machine.waiting_for == ("a", "b")


KRUM = TaskSettings(
    num_clients=10,
    fraction_train=1,
    partition="iid",
    strategy="krum",
    strategy_options={"attackers": 1},
    min_responses=0.1,
)


def test_a_round_waits_for_as_many_updates_as_its_rule_needs() -> None:
    plan = two_nodes(KRUM)
    collector = RoundCollector(plan, 1, (50,) * 10, 100, ())
    updates = [
        came(plan.nodes[chunk.node], 1, chunk.id, client) for chunk in plan.chunks(1) for client in chunk.clients
    ]
    for update in updates[:4]:
        assert collector.add(update)
    assert not collector.enough(200), "one tenth has answered long ago, and krum needs five"
    assert collector.add(updates[4])
    assert collector.enough(200)


def test_a_rule_that_needs_more_clients_than_a_round_has_is_impossible() -> None:
    settings = KRUM.model_copy(update={"fraction_train": 0.4})
    found = attempt(settings, [hello("a"), hello("b")])
    assert isinstance(found, Impossible)
    assert (
        "krum needs the updates of at least 5 clients in each round with these options, and a round has 4"
        in found.reason
    )


def test_time_that_a_round_has_waited_survives_a_restart_and_time_in_which_the_server_was_down_does_not_count() -> None:
    machine = restored(committed=0, kept=frozenset({0}), evaluated=frozenset({0}), saved=frozenset(), waited=100.0)
    assert machine.waited(0) is None
    machine.begin(5000)
    assert machine.wake_at == 5000 + SETTINGS.round_timeout_seconds - 100
    assert machine.waited(5010) == (1, 110.0)


def test_a_node_in_another_round_is_sent_the_model_again_as_long_as_it_is_waited_for() -> None:
    machine = restored(committed=0, kept=frozenset({0}), evaluated=frozenset({0}), saved=frozenset())
    machine.begin(0)
    examples = ((2, 50),)
    for number, repeated in ((0, True), (2, True), (1, False)):
        report = TaskReport(task=UID, state="ready", round=number, num_examples=examples)
        sent = [
            action
            for action in machine.handle(on_server.NodeReported("a", report), 1)
            if isinstance(action, on_server.SendGlobal)
        ]
        assert [(action.node, action.round) for action in sent] == ([("a", 1)] if repeated else [])


def test_a_restart_between_a_rounds_last_record_and_its_clearing_continues_to_the_end() -> None:
    machine = restored(kept=frozenset({2, 3}))
    actions = machine.begin(0)
    assert on_server.ClearModel(2) in actions
    assert {action.node for action in actions if isinstance(action, on_server.SendFinal)} == {"a", "b"}


def test_a_restart_at_the_end_does_not_let_nodes_begin_again() -> None:
    assert not [action for action in restored().begin(0) if isinstance(action, on_server.Assign)]


def test_a_task_that_was_stopped_after_its_last_round_and_is_resumed_delivers_its_final_model() -> None:
    last = SETTINGS.num_rounds
    done = frozenset({last})
    plan = two_nodes().model_copy(update={"resumes": "f" * 32})
    stored = Restored(committed=last, counts=(50,) * SETTINGS.num_clients, kept=done, evaluated=done, saved=done)
    machine = TaskMachine(plan, stored, own_testset=True)
    actions = machine.begin(0)
    assert actions[:2] == [on_server.Assign(node) for node in plan.nodes]
    assert actions[-2:] == [on_server.SendFinal(node, last) for node in plan.nodes]
    for node in plan.nodes:
        assert machine.handle(on_server.NodeReported(node, None), 1) == [], "it has not begun with this run yet"
    assert machine.handle(on_server.FinalDelivered(plan.nodes[0]), 1) == []
    (finish,) = machine.handle(on_server.FinalDelivered(plan.nodes[1]), 1)
    assert isinstance(finish, on_server.Finish)
    assert finish.outcome == "completed"


def continued(after: int, committed: int) -> TaskMachine:
    """A task that was complete after some rounds, and got two more than it has now."""
    longer = SETTINGS.model_copy(update={"num_rounds": committed + 2})
    plan = two_nodes().model_copy(update={"resumes": "f" * 32, "settings": longer, "continued_after": after})
    done = frozenset({committed})
    stored = Restored(committed=committed, counts=(50,) * SETTINGS.num_clients, kept=done, evaluated=done, saved=done)
    return TaskMachine(plan, stored, own_testset=True)


def test_a_completed_task_that_got_more_rounds_trains_on_from_its_last_one() -> None:
    machine = continued(after=3, committed=3)
    actions = machine.begin(0)
    assert actions[:2] == [on_server.Assign(node) for node in machine.plan.nodes]
    assert {action.round for action in actions if isinstance(action, on_server.SendGlobal)} == {4}
    assert not [action for action in actions if isinstance(action, on_server.SendFinal | on_server.Save)]
    assert machine.round == 4


@pytest.mark.parametrize(
    ("committed", "outcome", "reason"),
    [
        (3, "completed", "3 rounds done; it could not be continued: node a refused: what its clients kept is gone"),
        (4, "failed", "node a refused: what its clients kept is gone"),
    ],
)
def test_a_continuation_that_a_node_refuses_leaves_the_task_complete_unless_it_got_further(
    committed: int, outcome: str, reason: str
) -> None:
    machine = continued(after=3, committed=committed)
    machine.begin(0)
    report = TaskReport(task=UID, state="refused", reason="what its clients kept is gone")
    (finish,) = machine.handle(on_server.NodeReported("a", report), 1)
    assert finish == on_server.Finish(outcome, reason, machine.plan.nodes)


def test_a_continuation_that_is_stopped_before_its_first_round_can_be_resumed() -> None:
    machine = continued(after=3, committed=3)
    machine.begin(0)
    (finish,) = machine.handle(on_server.StopRequested("stopped by a user"), 1)
    assert finish == on_server.Finish("stopped", "stopped by a user", machine.plan.nodes)


def test_a_node_that_no_longer_holds_the_task_is_not_waited_for_at_the_end() -> None:
    machine = restored()
    machine.begin(0)
    assert machine.handle(on_server.NodeReported("a", None), 1) == []
    assert machine.waiting_for == ("b",)
    (finish,) = machine.handle(on_server.FinalDelivered("b"), 2)
    assert finish == on_server.Finish("completed", "3 rounds done")


def test_a_node_that_refuses_the_final_model_fails_no_finished_training() -> None:
    machine = restored()
    machine.begin(0)
    assert machine.handle(on_server.NodeRefused("a", "the globalparam: no"), 1) == []
    (finish,) = machine.handle(on_server.FinalDelivered("b"), 2)
    assert finish == on_server.Finish(
        "completed", "3 rounds done; without the final model: a (refused the globalparam: no)", ("a",)
    )
    assert machine.without_final == ("a",)


def says(state: str, **fields: object) -> TaskReport:
    return TaskReport.model_validate({"task": UID, "state": state, "reason": "no GPU", **fields})


@pytest.mark.parametrize("state", ["failed", "refused", "diverged"])
def test_trouble_of_a_node_after_the_last_round_fails_no_finished_training(state: str) -> None:
    machine = restored(evaluated=frozenset({2}))
    machine.begin(0)
    assert machine.handle(on_server.NodeReported("a", says(state)), 1) == [], "the last test still runs"
    assert machine.handle(on_server.Evaluated(3), 2) == [on_server.SendFinal("b", 3)]
    (finish,) = machine.handle(on_server.FinalDelivered("b"), 3)
    assert finish == on_server.Finish(
        "completed", f"3 rounds done; without the final model: a ({state}: no GPU)", ("a",)
    )
    assert machine.without_final == ("a",)


def test_a_node_that_fails_after_it_took_the_final_model_fails_no_finished_training() -> None:
    machine = restored()
    machine.begin(0)
    machine.handle(on_server.FinalDelivered("b"), 1)
    assert machine.handle(on_server.NodeReported("b", says("failed")), 2) == []
    (finish,) = machine.handle(on_server.FinalDelivered("a"), 3)
    assert finish == on_server.Finish("completed", "3 rounds done; without the final model: b (failed: no GPU)", ("b",))


def test_a_node_that_is_repaired_before_the_end_gets_the_final_model() -> None:
    machine = restored()
    machine.begin(0)
    machine.handle(on_server.NodeReported("a", says("failed")), 1)
    ready = says("ready", num_examples=((2, 49),))  # other data than was trained on: it does not matter any more
    assert machine.handle(on_server.NodeReported("a", ready), 2) == [on_server.SendFinal("a", 3)]
    assert machine.undelivered == ("a", "b")
    machine.handle(on_server.FinalDelivered("a"), 3)
    assert machine.handle(on_server.FinalDelivered("b"), 4) == [on_server.Finish("completed", "3 rounds done")]


def test_a_node_that_already_keeps_the_final_model_is_not_waited_for() -> None:
    machine = restored()
    machine.begin(0)
    assert machine.handle(on_server.NodeReported("a", says("closing")), 1) == []
    assert machine.undelivered == ("b",)


def test_a_node_that_refuses_a_rounds_model_ends_the_task_with_its_reason() -> None:
    machine = restored(committed=0, kept=frozenset({0}), evaluated=frozenset({0}), saved=frozenset())
    machine.begin(0)
    (finish,) = machine.handle(on_server.NodeRefused("a", "the globalparam: too large"), 1)
    assert finish == on_server.Finish("failed", "node a refused the globalparam: too large", ("a", "b"))


def test_a_node_that_is_away_at_the_end_is_named_as_one_that_still_gets_the_model() -> None:
    machine = restored()
    machine.begin(0)
    machine.handle(on_server.FinalDelivered("a"), 1)
    (finish,) = machine.handle(on_server.TimePassed(), FINAL_DELIVERY_SECONDS)
    assert finish == on_server.Finish(
        "completed", "3 rounds done; the final model still goes to b", awaiting_final=("b",)
    )
    assert machine.undelivered == ("b",)


def test_a_test_set_that_has_not_come_is_named_by_its_node() -> None:
    found = Restored(committed=0, counts=(50,) * 4, kept=frozenset({0}))
    machine = TaskMachine(two_nodes(), found, own_testset=False)
    machine.begin(0)
    assert machine.phase == "preparing"
    assert machine.waiting_for == ("a",)


# ---------------------------------------------------------------- a node fails in the middle

HALF = SETTINGS.model_copy(update={"min_responses": 0.5})


def in_round_one(settings: TaskSettings = HALF) -> TaskMachine:
    """A machine of two nodes with two clients each, all of them in every cohort, at time 0."""
    found = Restored(committed=0, counts=(50,) * 4, kept=frozenset({0}), evaluated=frozenset({0}))
    machine = TaskMachine(two_nodes(settings), found, own_testset=True)
    machine.begin(0)
    return machine


def answers(machine: TaskMachine, node: str) -> list[on_server.UpdateArrived]:
    plan, number = machine.plan, machine.round
    chunks = [chunk for chunk in plan.chunks(number) if plan.nodes[chunk.node] == node]
    summed = plan.uplink == Uplink.SUM
    keys = [(chunk.id, client) for chunk in chunks for client in ([None] if summed else [*chunk.clients])]
    return [on_server.UpdateArrived(came(node, number, chunk, client)) for chunk, client in keys]


def all_from(machine: TaskMachine, node: str) -> list[on_server.Action]:
    return [action for update in answers(machine, node) for action in machine.handle(update, 1)]


def kinds(actions: Iterable[on_server.Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_a_round_continues_without_a_node_that_failed_as_soon_as_all_others_have_answered() -> None:
    machine = in_round_one()
    (note,) = machine.handle(on_server.NodeReported("b", says("failed")), 1)
    assert note == on_server.RecordEvent("node_failed", "node b failed: no GPU; the task goes on without its clients")
    assert machine.handle(on_server.NodeReported("b", says("failed")), 2) == [], "it is told once"
    assert machine.waiting_for == ("a",)
    roster, _ = all_from(machine, "a")
    assert isinstance(roster, on_server.WriteRoster)
    assert roster.missing == (2, 3)
    actions = machine.handle(on_server.Aggregated(1, finite=True), 3)
    assert [action.node for action in actions if isinstance(action, on_server.SendGlobal)] == ["a"]
    assert machine.waiting_for == ("a",), "and so do the rounds after it"


def test_a_round_that_only_waits_for_a_node_that_fails_closes_at_once() -> None:
    machine = in_round_one()
    assert all_from(machine, "a") == []
    assert kinds(machine.handle(on_server.NodeReported("b", says("failed")), 2)) == [
        "RecordEvent",
        "WriteRoster",
        "AggregateRound",
    ]


def test_what_a_failed_node_had_sent_before_counts() -> None:
    machine = in_round_one(HALF.model_copy(update={"min_responses": 0.75, "strategy": "median"}))
    first, _ = answers(machine, "b")
    machine.handle(first, 1)
    machine.handle(on_server.NodeReported("b", says("failed")), 2)
    roster, _ = all_from(machine, "a")
    assert isinstance(roster, on_server.WriteRoster)
    assert len(roster.missing) == 1


@pytest.mark.parametrize("min_responses", [0.51, 1.0])
def test_too_few_clients_without_a_failed_node_end_the_task_with_its_reason(min_responses: float) -> None:
    machine = in_round_one(HALF.model_copy(update={"min_responses": min_responses}))
    *_, finish = machine.handle(on_server.NodeReported("b", says("failed")), 1)
    assert isinstance(finish, on_server.Finish)
    assert finish.outcome == "failed"
    assert finish.reason.startswith("node b failed: no GPU")


def test_a_failed_node_that_is_ready_again_takes_part_again_in_the_same_round() -> None:
    machine = in_round_one()
    machine.handle(on_server.NodeReported("b", says("failed")), 1)
    assert machine.handle(on_server.NodeReported("b", says("loading")), 2) == []
    assert machine.waiting_for == ("a",)
    note, send = machine.handle(on_server.NodeReported("b", says("ready", num_examples=((2, 50),))), 3)
    assert note == on_server.RecordEvent("node_back", "node b takes part again")
    assert isinstance(send, on_server.SendGlobal)
    assert machine.waiting_for == ("a", "b")


def test_a_restarted_server_leaves_a_failed_node_out_as_soon_as_it_hears_of_it() -> None:
    machine = in_round_one()
    machine.handle(on_server.NodeReported("b", says("failed")), 1)
    again = in_round_one()
    again.handle(on_server.NodeReported("b", says("failed")), 1)
    assert all_from(again, "a") == all_from(machine, "a")


def test_a_node_that_fails_before_round_one_ends_the_task() -> None:
    machine = TaskMachine(two_nodes(HALF), Restored(), own_testset=True)
    machine.begin(0)
    (finish,) = machine.handle(on_server.NodeReported("b", says("failed")), 1)
    assert finish == on_server.Finish("failed", "node b failed: no GPU", ("a", "b"))


# ---------------------------------------------------------------- a node


def assignment(**changes: object) -> Assignment:
    return two_nodes().assignment("a").model_copy(update=changes)


def ready_node() -> NodeMachine:
    machine = NodeMachine(assignment(), ())
    machine.begin()
    machine.handle(on_node.Loaded(((2, 150),)))
    return machine


@pytest.mark.parametrize(
    "event", [on_node.Failed("no"), on_node.Failed("no", refused=True), on_node.TrainingDiverged(0, 0)], ids=repr
)
def test_a_node_that_gives_a_task_up_holds_no_workers(event: on_node.Event) -> None:
    assert ready_node().handle(event) == [on_node.EndWorkers(), on_node.Report()]


@pytest.mark.parametrize("event", [on_node.Failed("no such file", round=1), on_node.TrainingDiverged(1, 0)], ids=repr)
@pytest.mark.parametrize(
    "next_model",
    [Broadcast(used_through=1, chunks=(Chunk(id=0, clients=(0,)),)), Broadcast(used_through=1, final=True)],
    ids=["next round", "final"],
)
def test_a_chunk_of_a_round_that_went_on_without_it_fails_nothing(event: on_node.Event, next_model: Broadcast) -> None:
    machine = ready_node()
    machine.handle(on_node.GlobalArrived(1, Broadcast(chunks=(Chunk(id=0, clients=(0,)),))))
    machine.handle(on_node.GlobalArrived(2, next_model))
    before = machine.report
    assert machine.handle(event) == [on_node.ClearUsedUpdates(1)]
    assert machine.report == before


def test_a_reason_of_any_length_can_be_reported() -> None:
    machine = ready_node()
    machine.handle(on_node.Failed("x" * 10_000))
    assert machine.report.reason == "x" * MAX_TEXT


def test_partitions_too_many_for_a_hello_are_a_reason_not_a_crash() -> None:
    machine = NodeMachine(assignment(), ())
    machine.begin()
    machine.handle(on_node.Loaded(tuple((1, size) for size in range(1, MAX_RUNS + 2))))
    assert machine.report.state == "failed"
    assert "fewer" in machine.report.reason


def test_a_stop_after_the_final_model_does_not_take_it_away() -> None:
    machine = ready_node()
    assert machine.handle(on_node.GlobalArrived(4, Broadcast(used_through=3, final=True))) == [on_node.KeepFinal(4)]
    assert machine.handle(on_node.Stopped()) == []
    assert machine.handle(on_node.FinalKept()) == [on_node.End()]


def test_a_node_that_cannot_keep_the_final_model_says_so_and_holds_no_workers() -> None:
    machine = ready_node()
    machine.handle(on_node.GlobalArrived(4, Broadcast(used_through=3, final=True)))
    assert machine.handle(on_node.Failed("no permission")) == [on_node.EndWorkers(), on_node.Report()]
    assert machine.report.state == "failed"
    assert machine.handle(on_node.Stopped()) == [on_node.End()]


def test_a_node_that_failed_ends_with_the_servers_stop() -> None:
    machine = ready_node()
    machine.handle(on_node.Failed("disk"))
    assert machine.handle(on_node.GlobalArrived(1, Broadcast(chunks=(Chunk(id=0, clients=(0,)),)))) == []
    assert machine.handle(on_node.Stopped()) == [on_node.End()]


# ---------------------------------------------------------------- the plan


def test_a_bank_whose_file_lacks_a_class_still_takes_part() -> None:
    poorer = INFO.model_copy(update={"num_classes": 9, "digest": "b" * 64, "share_test": False})
    local = SETTINGS.model_copy(update={"partition": "local"})
    plan = attempt(local, [hello("a", datasets=(poorer,)), hello("b"), hello("c")])
    assert isinstance(plan, Plan)
    assert plan.nodes == ("a", "b", "c")
    assert plan.model_spec.num_classes == 10
    assert [plan.assignment(node).dataset_digest for node in plan.nodes] == ["b" * 64, "a" * 64, "a" * 64]


def test_a_servers_test_set_may_lack_a_class_of_the_banks_but_not_have_another() -> None:
    local = SETTINGS.model_copy(update={"partition": "local"})
    fewer, more = (INFO.model_copy(update={"num_classes": count}) for count in (9, 11))
    assert isinstance(attempt(local, [hello("a")], server_dataset=fewer), Plan)
    assert isinstance(attempt(local, [hello("a")], server_dataset=more), Impossible)


def test_enough_nodes_with_the_same_data_come_before_a_stronger_group_that_is_too_small() -> None:
    other = INFO.model_copy(update={"digest": "b" * 64})
    strong = hello("a", clients=1000, datasets=(other,))
    plan = attempt(SETTINGS.model_copy(update={"num_nodes": 2}), [strong, hello("b"), hello("c")])
    assert isinstance(plan, Plan)
    assert plan.nodes == ("b", "c")


def test_more_nodes_than_there_are_are_waited_for() -> None:
    plan = attempt(SETTINGS.model_copy(update={"num_nodes": 5}), [hello("a"), hello("b")])
    assert plan == Waiting("5 nodes with the same data are wanted, online are a, b")


def test_a_node_that_reports_other_examples_than_were_fixed_ends_the_task() -> None:
    machine = restored(committed=1, kept=frozenset({1}), evaluated=frozenset(), saved=frozenset())
    machine.begin(0)
    report = TaskReport(task=UID, state="ready", num_examples=((2, 49),))
    (finish,) = machine.handle(on_server.NodeReported("a", report), 1)
    assert isinstance(finish, on_server.Finish)
    assert "changed during the task" in finish.reason


def test_a_cohort_that_no_header_could_list_is_impossible_at_once_and_says_what_to_do() -> None:
    settings = SETTINGS.model_copy(update={"num_clients": 400_000})
    rich = INFO.model_copy(update={"num_train": 10**6})
    nodes = [hello(name, clients=10**6, datasets=(rich,)) for name in ("a", "b")]
    plan = attempt(settings, nodes, broadcast_bytes=10**6)
    assert isinstance(plan, Impossible)
    assert "can choose 200000 clients on a" in plan.reason
    assert "smaller fraction_train or more nodes" in plan.reason
    assert isinstance(attempt(settings.model_copy(update={"fraction_train": 0.1}), nodes, broadcast_bytes=10**6), Plan)


@pytest.mark.parametrize("num_clients", [70_000, 130_000])
def test_whatever_a_plan_allows_fits_the_header_of_a_model(num_clients: int) -> None:
    settings = SETTINGS.model_copy(update={"num_clients": num_clients})
    node = hello("a", clients=10**6, workers=64, datasets=(INFO.model_copy(update={"num_train": 10**6}),))
    file = FileId(kind=Kind.GLOBALPARAM, task=UID, round=SETTINGS.num_rounds + 1)
    most = Limits().max_header_bytes
    plan = attempt(settings, [node], broadcast_bytes=room_for_meta(most, file))
    assert isinstance(plan, Plan)
    broadcast = RoundCollector(plan, 1, (1,) * num_clients, 0, ()).broadcast("a")
    assert broadcast is not None
    header = FileHeader(id=file, size=1, digest="0" * 64, meta=broadcast.broadcast.model_dump(mode="json"))
    assert most / 4 < len(encode(FrameType.OFFER, header)) <= most
    exactly = len(broadcast.broadcast.model_dump_json())
    assert isinstance(attempt(settings, [node], broadcast_bytes=exactly - 100), Impossible), "the bound is no less"
