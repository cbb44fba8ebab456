"""A task that only gathers statistics: who takes part, restarts in its middle, its end without a model."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from plugin_support import UID, attempt, hello, planned

from fedsim.config import ClientConfig, DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.column_statistics import ALL_FEATURES, STATISTICS, NodeStatistics, StatisticsRule
from fedsim.learning.transforms import task_phases
from fedsim.messages import ModelSpec, TaskReport
from fedsim.settings import TaskSettings, parse_settings
from fedsim.state_machines import node_events as on_node
from fedsim.state_machines import task_events as on_server
from fedsim.state_machines.candidates import Waiting
from fedsim.state_machines.node import NodeMachine
from fedsim.state_machines.phases import NodeQuery, TaskPhase
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.policy import NO_STATISTICS, refusal
from fedsim.state_machines.task import TaskMachine
from fedsim.state_machines.task_events import Restored
from fedsim.worker.jobs import AnswerMade, AnswerPhase, DataLoaded, Load
from fedsim.worker.node_jobs import NodeJobs

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


class StatisticsWorld:
    """Server and nodes whose messages are lost, doubled and delayed, and which crash; what is written stays."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.plan = plan_of("a", "b", "c")
        self.restored = Restored()
        self.written: list[on_server.CompletePhase] = []
        self.finish: on_server.Finish | None = None
        self.spool: list[on_server.PhaseAnswered] = []  # of the server's host
        self.requested: set[str] = set()  # the questions in the spools of nodes
        self.nodes: dict[str, NodeMachine | None] = dict.fromkeys(self.plan.nodes)
        self.start_server()

    def start_server(self) -> None:
        phases = [NodeQuery(phase) for phase in task_phases(self.plan.settings, self.plan.data_schema)]
        self.server = TaskMachine(self.plan, self.restored, own_testset=True, extensions=phases)
        actions = self.server.begin(0)
        self.carry_out(actions)
        for answer in self.spool:
            self.carry_out(self.server.handle(answer, 0))

    def carry_out(self, actions: list[on_server.Action]) -> None:
        for action in actions:
            match action:
                case on_server.Assign(node):
                    self.nodes[node] = self.nodes[node] or self.begin(node)
                case on_server.RecordCounts(counts):
                    self.restored = replace(self.restored, counts=counts)
                case on_server.RequestAnswer(node) if self.random.random() < 0.7:
                    self.requested.add(node)
                case on_server.CompletePhase():
                    self.restored = replace(self.restored, completed_phases=(action,))
                    self.written.append(action)
                    self.spool.clear()
                case on_server.Finish():
                    self.finish = action

    def begin(self, node: str) -> NodeMachine:
        machine = NodeMachine(self.plan.assignment(node))
        machine.begin()
        return machine

    def step(self) -> None:
        node = self.random.choice(self.plan.nodes)
        machine = self.nodes[node]
        match self.random.randrange(7):
            case 0:
                self.start_server()
            case 1:  # the node restarts, or loses even the task
                self.nodes[node] = None if machine is None or self.random.random() < 0.5 else self.begin(node)
            case 2 if machine is not None:
                size = next(share.num_train for share in self.plan.shares if share.node == node)
                machine.handle(on_node.Loaded(((1, size or 0),)))
            case 3 if machine is not None and node in self.requested:
                self.answer(node, machine)
            case 4:  # a file is offered again
                for answer in self.random.sample(self.spool, min(1, len(self.spool))):
                    self.carry_out(self.server.handle(answer, 1))
            case _:
                self.carry_out(self.server.handle(on_server.NodeReported(node, machine.report if machine else None), 1))

    def answer(self, node: str, machine: NodeMachine) -> None:
        for asked in machine.handle(on_node.RequestArrived(STATISTICS, 0)):
            assert isinstance(asked, on_node.AnswerRequest)
            for send in machine.handle(on_node.Answered(asked.phase, asked.round, json.dumps({"of": node}))):
                assert isinstance(send, on_node.SendAnswer)
                came = on_server.PhaseAnswered(node, send.phase, send.round, send.content)
                if self.random.random() < 0.5 and self.finish is None:
                    self.spool.append(came)
                    self.carry_out(self.server.handle(came, 1))


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_lost_or_killed_the_same_answers_end_it(seed: int) -> None:
    world = StatisticsWorld(seed)
    for _ in range(5000):
        if world.finish is not None:
            break
        world.step()
    assert world.finish is not None, "it came to an end"
    assert world.finish.outcome == "completed"
    expected = tuple((node, json.dumps({"of": node})) for node in ("a", "b", "c"))
    assert {done.answers for done in world.written} == {expected}


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


def test_a_worker_answers_for_images_without_making_a_model(tmp_path: Path) -> None:
    settings, _ = parse_settings({"kind": "statistics", "dataset": "digits"})
    dataset = DataSetConfig.model_validate({"name": "digits", "path": "digits", "format": "digits", "access": "open"})
    train = load_dataset(dataset, tmp_path).train
    spec = ModelSpec(name="not-installed", feature_shape=train.feature_shape, num_classes=10)
    assignment = plan_of("a").assignment("a")
    changes = {"settings": settings, "model_spec": spec, "dataset_digest": None, "data_schema": None}
    worker = NodeJobs(1)
    loaded = worker.do(
        Load(
            assignment=assignment.model_copy(update=changes),
            dataset=dataset,
            folder=tmp_path,
            min_examples=1,
            statistics=StatisticsRule(allowed="extremes", min_count=10, guarded=False),
        )
    )
    assert isinstance(loaded, DataLoaded)
    assert loaded.num_examples == ((1, len(train)),)
    answered = worker.do(AnswerPhase(phase=STATISTICS, round=0, content={"bins": "of my choice"}))
    assert isinstance(answered, AnswerMade)
    found = NodeStatistics.model_validate(answered.content)
    column = found.columns[ALL_FEATURES]
    assert column is not None
    pixels = train.take(slice(None))
    assert (column.count, column.least, column.greatest) == (pixels.size, pixels.min(), pixels.max())
    assert column.total / column.count == pytest.approx(float(pixels.mean()), rel=1e-5)
    assert sum(count or 0 for count in found.labels.values()) == len(train)
