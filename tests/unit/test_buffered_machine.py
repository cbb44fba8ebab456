"""Asynchronous rounds in the simulated world of `test_task_machine`: disasters, slow nodes, staleness, the record."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from plugin_support import UID
from test_task_machine import SETTINGS, World, came, combined, digest, plan_for, started

from fedsim.messages import Broadcast, Chunk, TaskReport
from fedsim.state_machines import node_events as on_node
from fedsim.state_machines import task_events as on_server
from fedsim.state_machines.node import NodeMachine
from fedsim.state_machines.task import TaskMachine
from fedsim.state_machines.task_events import Restored

BUFFERED = SETTINGS.model_copy(
    update={"strategy": "fedbuff", "strategy_options": {"buffer_size": 4, "concurrency": 6, "max_staleness": 3}}
)


def replayed(world: World) -> str:
    """The final model, from the rosters alone."""
    plan = world.plan
    models = {0: digest("initial")}
    for number in range(1, plan.settings.num_rounds + 1):
        roster = world.rosters[number]
        for update in roster.updates:
            key = (update.base_round, update.chunk, update.client)
            assert update.digest == digest(models[update.base_round - 1], *key), "it began with the model of its round"
        models[number] = combined(models[number - 1], roster.updates)
    return models[plan.settings.num_rounds]


def check_record(world: World) -> None:
    """Each round is full, nothing counts twice, nothing is too stale."""
    used = Counter(
        (one.base_round, one.chunk, one.client) for roster in world.rosters.values() for one in roster.updates
    )
    assert max(used.values()) == 1, f"used twice: {used.most_common(3)}"
    for number, roster in world.rosters.items():
        assert len(roster.updates) == 4
        assert roster.missing == ()
        assert all(0 <= number - one.base_round <= 3 for one in roster.updates)
        assert all(one.num_examples == 50 for one in roster.updates), "what a node reports is not trusted"


def test_disasters_lose_and_double_nothing_and_the_record_gives_the_same_model(seeds: range) -> None:
    crashes = stale = 0
    settings = BUFFERED.model_copy(update={"num_rounds": 9})
    for seed in seeds:
        world = World(settings, seed, faults=0.3)
        final = world.run()
        assert replayed(world) == final, f"seed {seed}"
        check_record(world)
        crashes += world.crashes
        stale += sum(one.base_round < roster.round for roster in world.rosters.values() for one in roster.updates)
    assert crashes > len(seeds), "the disasters must happen"
    assert stale > len(seeds), "updates must be stale"


def test_a_restored_backup_ends_with_the_model_of_what_was_decided_last(seeds: range) -> None:
    for seed in seeds:
        world = World(BUFFERED, seed, faults=0.3)
        final = world.run(restores=True)
        assert replayed(world) == final, f"seed {seed}"
        check_record(world)


@pytest.mark.parametrize("faults", [0.0, 0.3])
def test_a_node_that_falls_behind_is_not_set_back_by_the_models_that_it_has_trained_from(
    faults: float, seeds: range
) -> None:
    """The world asserts that only a model that has just arrived sets a node back."""
    options = {"buffer_size": 2, "concurrency": 6, "max_staleness": 1}
    settings = BUFFERED.model_copy(update={"strategy_options": options, "num_rounds": 12})
    late = 0
    for seed in seeds:
        world = World(settings, seed, faults=faults)
        world.pace["a"] = 4.0
        final = world.run()
        assert replayed(world) == final, f"seed {seed}"
        late += world.late
    assert late > len(seeds), "clients must complete rounds that were over"


def buffered(**options: Any) -> tuple[TaskMachine, list[on_server.SendGlobal]]:
    """A machine in round 1, and what it sent."""
    chosen = {**BUFFERED.strategy_options, **options}
    machine, _, sends = started(BUFFERED.model_copy(update={"strategy_options": chosen}))
    return machine, sends


def of(send: on_server.SendGlobal, place: int) -> on_server.UpdateArrived:
    chunk = send.broadcast.chunks[place]
    return on_server.UpdateArrived(came(send.node, send.round, chunk.id, chunk.clients[0]))


def commit(machine: TaskMachine, number: int) -> list[on_server.Action]:
    return machine.handle(on_server.Aggregated(number, finite=True), number)


def test_one_quick_node_fills_the_buffer_alone_and_the_order_of_arrival_is_kept() -> None:
    machine, (quick, *_) = buffered()
    arrivals = [of(quick, place) for place in (2, 0, 3, 1)]
    for one in arrivals[:3]:
        assert machine.handle(one, 1) == []
    roster, aggregate = machine.handle(arrivals[3], 1)
    assert isinstance(roster, on_server.WriteRoster)
    assert isinstance(aggregate, on_server.AggregateRound)
    assert [one.chunk for one in roster.updates] == [one.update.chunk for one in arrivals]


def test_an_update_that_comes_while_a_round_is_summed_counts_in_the_next_one_with_its_staleness() -> None:
    machine, (quick, slow, *_) = buffered()
    for place in range(4):
        machine.handle(of(quick, place), 1)
    late = of(slow, 0)
    assert machine.handle(late, 1) == []
    assert machine.handle(of(quick, 0), 1) == [], "it is being summed: its file stays"
    actions = commit(machine, 1)
    cleared = [one.update.chunk for one in actions if isinstance(one, on_server.DiscardUpdate)]
    assert cleared == [chunk.id for chunk in quick.broadcast.chunks[:4]], "what was used is removed, and nothing else"
    sends = [one for one in actions if isinstance(one, on_server.SendGlobal)]
    assert {one.round for one in sends} == {2}
    (to_quick,) = (one for one in sends if one.node == quick.node)
    assert len(to_quick.broadcast.used) == 4, "the node learns what was used"
    for place in range(3):
        actions = machine.handle(of(to_quick, place), 2)
    roster = next(one for one in actions if isinstance(one, on_server.WriteRoster))
    assert [one.base_round for one in roster.updates] == [1, 2, 2, 2]
    assert machine.handle(of(quick, 1), 2) == [on_server.DiscardUpdate(of(quick, 1).update)], "it was used in round 1"


def test_an_update_that_is_too_stale_is_discarded_and_that_is_said() -> None:
    machine, (quick, slow, other) = buffered(max_staleness=1, buffer_size=1)
    send = quick
    for number in (1, 2, 3):
        machine.handle(of(send, 0), number)
        actions = commit(machine, number)
        send = next(one for one in actions if isinstance(one, on_server.SendGlobal) and one.node == quick.node)
    discard, said = machine.handle(of(slow, 0), 4)
    assert discard == on_server.DiscardUpdate(of(slow, 0).update)
    assert isinstance(said, on_server.RecordEvent)
    assert "in round 4 its staleness is 3, at most 1 counts" in said.text
    assert machine.handle(of(slow, 0), 5) == [discard], "a node offers it again until it gets the next model"
    assert len(machine.handle(of(other, 0), 5)) == 2, "another update is reported"


def test_a_used_update_that_a_crash_left_on_the_disk_is_not_reported_as_too_stale() -> None:
    """The server commits round 2, which used an update of round 1, and crashes before its file is removed."""
    machine, (quick, slow, *_) = buffered(max_staleness=1, buffer_size=1)
    machine.handle(of(quick, 0), 1)
    commit(machine, 1)
    machine.handle(of(slow, 0), 2)
    committed = next(one for one in commit(machine, 2) if isinstance(one, on_server.Commit))
    restored = Restored(committed=2, counts=machine.counts, kept=frozenset({2}), used=committed.used)
    again = TaskMachine(machine.plan, restored, own_testset=True)
    again.begin(3)
    assert again.handle(of(slow, 0), 3) == [on_server.DiscardUpdate(of(slow, 0).update)]


def test_what_was_not_asked_of_a_node_is_discarded() -> None:
    machine, (first, second, *_) = buffered()
    chunk = first.broadcast.chunks[0]
    for wrong in (
        came(second.node, 1, chunk.id, chunk.clients[0]),
        came(first.node, 2, chunk.id, chunk.clients[0]),
        came(first.node, 1, 999, chunk.clients[0]),
        came(first.node, 1, chunk.id, chunk.clients[0] + 1),
    ):
        assert machine.handle(on_server.UpdateArrived(wrong), 1) == [on_server.DiscardUpdate(wrong)]


def test_a_snapshot_knows_the_buffer() -> None:
    machine, (quick, slow, *_) = buffered()
    for one in (of(quick, 0), of(slow, 1)):
        machine.handle(one, 1)
    snapshot = machine.snapshot()
    assert snapshot is not None
    again = TaskMachine(machine.plan, snapshot, own_testset=True)
    again.begin(2)
    again.handle(of(quick, 1), 2)
    actions = again.handle(of(quick, 2), 2)
    roster = next(one for one in actions if isinstance(one, on_server.WriteRoster))
    assert [one.node for one in roster.updates] == [quick.node, slow.node, quick.node, quick.node]


def test_a_resumed_server_does_not_count_again_what_is_still_on_its_disk() -> None:
    machine, (quick, *_) = buffered()
    for place in range(4):
        machine.handle(of(quick, place), 1)
    committed = next(one for one in commit(machine, 1) if isinstance(one, on_server.Commit))
    restored = Restored(committed=1, counts=machine.counts, kept=frozenset({1}), used=committed.used)
    again = TaskMachine(machine.plan, restored, own_testset=True)
    again.begin(2)
    for place in range(4):
        assert again.handle(of(quick, place), 2) == [on_server.DiscardUpdate(of(quick, place).update)]


# ---------------------------------------------------------------- the node


def test_a_node_completes_what_it_has_begun_and_then_takes_the_newest_model() -> None:
    plan = plan_for(BUFFERED)
    assert [plan.assignment(node).slots for node in plan.nodes] == [2, 2, 2]
    machine = NodeMachine(plan.assignment("a"))
    machine.begin()
    machine.handle(on_node.Loaded(((4, 50),)))
    machine.handle(on_node.WorkersIdle(3))

    def globalparam(number: int, *clients: int, used: tuple[tuple[int, int], ...] = ()) -> on_node.GlobalArrived:
        chunks = tuple(Chunk(id=place, clients=(client,)) for place, client in enumerate(clients))
        return on_node.GlobalArrived(number, Broadcast(chunks=chunks, used=used))

    def begun(actions: list[on_node.Action]) -> list[tuple[int, int]]:
        return [(one.round, one.chunk.id) for one in actions if isinstance(one, on_node.TrainChunk)]

    assert begun(machine.handle(globalparam(1, 2, 0, 3, 1))) == [(1, 0), (1, 1)], "two at once, in the order given"
    actions = machine.handle(globalparam(2, 1, 3, 0, 2))
    assert on_node.ClearGlobals(2, (1,)) in actions, "clients are still training from the first model"
    assert begun(actions) == [], "nothing is interrupted"
    assert machine.handle(on_node.Trained(1, 1)) == [on_node.SendUpdates(1, 1)]
    assert begun(machine.handle(on_node.WorkersIdle(2))) == [(2, 0)]
    assert machine.handle(on_node.Trained(1, 0)) == [on_node.SendUpdates(1, 0), on_node.ClearGlobals(2)]
    actions = machine.handle(globalparam(3, used=((1, 1),)))
    assert on_node.ClearUsedUpdates(0, ((1, 1),)) in actions
    again = machine.handle(on_node.UsePending())
    assert [one for one in again if isinstance(one, on_node.SendUpdates)] == [on_node.SendUpdates(1, 0)]


def training() -> NodeMachine:
    """A node that trains chunks 0 and 1 from the model of round 1, and is in round 2."""
    machine = NodeMachine(plan_for(BUFFERED).assignment("a"))
    machine.begin()
    machine.handle(on_node.Loaded(((4, 50),)))
    machine.handle(on_node.WorkersIdle(4))
    chunks = tuple(Chunk(id=client, clients=(client,)) for client in range(4))
    machine.handle(on_node.GlobalArrived(1, Broadcast(chunks=chunks)))
    machine.handle(on_node.GlobalArrived(2, Broadcast(chunks=chunks)))
    return machine


@pytest.mark.parametrize(
    "ended",
    [
        on_node.Trained(1, 1),
        on_node.TrainingDiverged(1, 1, chunk=1),
        on_node.Failed("no such file", round=1, chunk=1),
        on_node.Failed("no such file", round=1),  # of a worker of an older version
    ],
    ids=repr,
)
def test_each_client_that_ends_after_its_round_is_over_frees_one_slot_and_the_last_removes_the_model(
    ended: on_node.Event,
) -> None:
    machine = training()
    over = Broadcast(chunks=(Chunk(id=0, clients=(0,)), Chunk(id=1, clients=(1,))), used_through=1)
    machine.handle(on_node.GlobalArrived(3, over))
    machine.handle(on_node.WorkersIdle(2))
    assert machine.handle(ended) == [on_node.ClearUsedUpdates(1), on_node.ClearGlobals(3, (1,))]
    began = [one for one in machine.handle(on_node.WorkersIdle(3)) if isinstance(one, on_node.TrainChunk)]
    assert [(one.round, one.chunk.id) for one in began] == [(3, 0)], "the other one still trains"
    last = 1 if ended == on_node.Failed("no such file", round=1) else 0
    assert machine.handle(on_node.Trained(1, last)) == [on_node.ClearUsedUpdates(1), on_node.ClearGlobals(3)]


def test_a_node_that_is_set_back_removes_later_models_even_those_that_clients_train_from() -> None:
    """The newest file would otherwise bring it forward again, to a model that the server no longer has."""
    machine = training()
    machine.handle(on_node.Trained(1, 0))
    machine.handle(on_node.WorkersIdle(3))
    machine.handle(on_node.GlobalArrived(3, Broadcast()))
    actions = machine.handle(on_node.GlobalArrived(1, Broadcast()))
    assert on_node.ClearGlobals(1, later=True) in actions
    assert machine.models_in_use == ()


def test_a_restarted_node_sends_what_it_has_of_earlier_rounds() -> None:
    machine = NodeMachine(plan_for(BUFFERED).assignment("a"), [(1, 0, 2), (2, 1, 3), (3, 0, 1)])
    machine.begin()
    machine.handle(on_node.Loaded(((4, 50),)))
    chunks = (Chunk(id=0, clients=(1,)), Chunk(id=1, clients=(0,)))
    actions = machine.handle(on_node.GlobalArrived(3, Broadcast(chunks=chunks, used_through=1)))
    assert [one for one in actions if isinstance(one, on_node.SendUpdates)] == [
        on_node.SendUpdates(2, 1),
        on_node.SendUpdates(3, 0),
    ]


def test_a_task_whose_nodes_cannot_fill_the_buffer_any_more_fails_and_says_why() -> None:
    settings = BUFFERED.model_copy(update={"min_responses": 0.9})
    machine, plan, _ = started(settings)
    finish: list[on_server.Action] = []
    for share in plan.shares:
        report = TaskReport(task=UID, state="failed", reason="the GPU is gone")
        finish = machine.handle(on_server.NodeReported(share.node, report), 1) or finish
    assert isinstance(finish[-1], on_server.Finish)
    assert "too few clients are left for round 1" in finish[-1].reason
