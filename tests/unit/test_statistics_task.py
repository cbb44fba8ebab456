"""A task that only gathers statistics: who takes part, restarts in its middle, its end without a model."""

from __future__ import annotations

import json

from plugin_support import UID, attempt, hello, planned

from fedsim.config import ClientConfig
from fedsim.learning.column_statistics import STATISTICS
from fedsim.learning.transforms import task_phases
from fedsim.messages import TaskReport
from fedsim.settings import TaskSettings, parse_settings
from fedsim.state_machines import task_events as on_server
from fedsim.state_machines.candidates import Waiting
from fedsim.state_machines.phases import NodeQuery, TaskPhase
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.policy import NO_STATISTICS, refusal
from fedsim.state_machines.task import TaskMachine
from fedsim.state_machines.task_events import Restored

SETTINGS, _ = parse_settings({"kind": "statistics", "dataset": "mnist"})
CONTENT = json.dumps({"examples": 1})


def plan_of(*names: str) -> Plan:
    return planned(*(hello(name, statistics="sums") for name in names), settings=SETTINGS)


def machine_of(plan: Plan, restored: Restored | None = None) -> tuple[TaskMachine, list[on_server.Action]]:
    phases = [NodeQuery(phase) for phase in task_phases(plan.settings, plan.data_schema)]
    machine = TaskMachine(plan, restored or Restored(), own_testset=True, extensions=phases)
    return machine, machine.begin(0)


def ready(machine: TaskMachine, node: str) -> list[on_server.Action]:
    size = next(share.num_train for share in machine.plan.shares if share.node == node)
    return machine.handle(
        on_server.NodeReported(node, TaskReport(task=UID, state="ready", num_examples=((1, size or 0),))), 1
    )


def answer(machine: TaskMachine, node: str) -> list[on_server.Action]:
    return machine.handle(on_server.PhaseAnswered(node, STATISTICS, 0, CONTENT), 2)


def asked(actions: list[on_server.Action]) -> list[str]:
    return [action.node for action in actions if isinstance(action, on_server.RequestAnswer)]


COMPLETE = on_server.CompletePhase(STATISTICS, 0, (("a", CONTENT), ("b", CONTENT)))


def ends(actions: list[on_server.Action]) -> None:
    finish = actions[-1]
    assert isinstance(finish, on_server.Finish)
    assert (finish.outcome, finish.reason, finish.stopped_nodes) == ("completed", "statistics of a, b", ("a", "b"))


def test_it_asks_all_nodes_and_ends_without_a_model() -> None:
    machine, first = machine_of(plan_of("a", "b"))
    assert first == [on_server.Assign("a"), on_server.Assign("b")]
    assert asked(ready(machine, "a")) == []
    assert asked(ready(machine, "b")) == ["a", "b"]
    assert answer(machine, "a") == []
    actions = answer(machine, "b")
    assert COMPLETE in actions
    ends(actions)
    assert machine.phase is TaskPhase.ENDED


def test_a_server_that_restarts_asks_again_and_ends_with_the_same_answers() -> None:
    plan = plan_of("a", "b")
    machine, _ = machine_of(plan)
    ready(machine, "a")
    ready(machine, "b")
    answer(machine, "a")
    again, actions = machine_of(plan, Restored(counts=machine.counts))
    assert asked(actions) == ["a", "b"]
    answer(again, "b")
    actions = answer(again, "a")
    assert COMPLETE in actions, "in the order of names, not of arrival"
    ends(actions)
    last, actions = machine_of(plan, Restored(counts=machine.counts, completed_phases=(COMPLETE,)))
    ends(actions)
    assert last.ended


def test_a_node_that_lost_the_task_is_asked_again() -> None:
    machine, _ = machine_of(plan_of("a", "b"))
    ready(machine, "a")
    ready(machine, "b")
    actions = machine.handle(on_server.NodeReported("b", None), 2)
    assert actions[0] == on_server.Assign("b")
    assert asked(actions) == ["b"]


def test_a_node_whose_owner_lets_none_leave_is_left_out_by_name() -> None:
    plan = planned(hello("a", statistics="sums"), hello("b"), settings=SETTINGS)
    assert plan.nodes == ("a",)
    assert dict(plan.left_out) == {
        "b": "lets no statistics of its data leave (institution.statistics in its client.yml)"
    }
    assert isinstance(attempt(SETTINGS, [hello("b")]), Waiting)
    assert plan.testset_from is None


def test_it_needs_no_model_and_no_plug_in_of_the_node() -> None:
    plan = planned(hello("a", statistics="extremes", plugins={}), settings=SETTINGS, plugins={})
    assert plan.nodes == ("a",)
    assert plan.shares[0].workers == 1


def config(rule: str, **institution: object) -> ClientConfig:
    return ClientConfig.model_validate(
        {
            "name": "a",
            "server": {"port": 1},
            "datasets": [{"name": "mnist", "path": "mnist", "access": "open"}],
            "institution": {"statistics": rule, **institution},
        }
    )


def test_the_node_decides_itself_whatever_the_server_planned() -> None:
    assignment = plan_of("a").assignment("a")
    assert refusal(assignment, config("none")) == NO_STATISTICS
    assert refusal(assignment, config("sums", models=["cnn"], max_passes=1)) is None, "nothing is trained"
    assert "wants to know what a task is for" in str(refusal(assignment, config("sums", require_purpose=True)))
    training = TaskSettings(partition="local", dataset="mnist")
    assert refusal(assignment.model_copy(update={"settings": training}), config("none")) is None
