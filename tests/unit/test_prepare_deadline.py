"""Before round 1 there is a deadline: a node that misses it does not hold the place of other tasks."""

from __future__ import annotations

import pytest
from test_task_machine_more import two_nodes

from fedsim.messages import TaskReport
from fedsim.state_machines import task_events as on_task
from fedsim.state_machines.task import TaskMachine

SECONDS = 60.0


def begun(*, own_testset: bool = False) -> TaskMachine:
    plan = two_nodes().model_copy(update={"prepare_timeout_seconds": SECONDS})
    machine = TaskMachine(plan, on_task.Restored(), own_testset)
    machine.begin(100.0)
    machine.handle(on_task.InitialModelMade(), 100.0)
    return machine


def make_ready(machine: TaskMachine, *nodes: str) -> None:
    for share in machine.plan.shares:
        if share.node in nodes:
            report = TaskReport(task=machine.plan.task, state="ready", num_examples=((share.num_clients, 1),))
            machine.handle(on_task.NodeReported(share.node, report), 101.0)


def test_a_task_whose_nodes_are_not_ready_in_time_is_postponed_with_their_names() -> None:
    machine = begun()
    assert machine.wake_at == 100.0 + SECONDS
    first, *others = machine.plan.nodes
    assert machine.handle(on_task.TimePassed(), 159.0) == []
    (action,) = machine.handle(on_task.TimePassed(), 160.0)
    assert action == on_task.Postpone(tuple((name, "is not ready 60 s after the start") for name in (first, *others)))
    assert machine.ended
    assert machine.handle(on_task.TimePassed(), 170.0) == []


def test_a_node_that_withholds_the_test_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = begun()
    monkeypatch.setattr(machine._participants, "counts", tuple(1 for _ in range(machine.plan.settings.num_clients)))
    source = machine.plan.testset_from
    assert machine.waiting_for == (source,)
    (action,) = machine.handle(on_task.TimePassed(), 160.0)
    assert action == on_task.Postpone(((source, "has not sent its test set 60 s after the start"),))


def test_without_anyone_to_wait_for_there_is_no_deadline() -> None:
    machine = begun(own_testset=True)
    machine._participants.counts = tuple(1 for _ in range(machine.plan.settings.num_clients))
    assert machine.waiting_for == ()
    assert machine.wake_at is None
    actions = machine.handle(on_task.TimePassed(), 1000.0)
    assert not any(isinstance(action, on_task.Postpone) for action in actions)
