"""The event log of a task: what was recorded can be replayed, it stays bounded, and it never fails a task."""

from __future__ import annotations

from pathlib import Path

import pytest
import state_diagrams
from test_task_machine import SETTINGS, World, answers, started

from fedsim.errors import BadInput
from fedsim.runtime import event_file
from fedsim.runtime.event_file import EventFile
from fedsim.state_machines import node_events as on_node
from fedsim.state_machines import task_events as on_server
from fedsim.state_machines.event_log import LoggedEvent, action_names, decode_event, encode_event, replay
from fedsim.state_machines.node import NodeMachine
from fedsim.state_machines.node_events import NodeTaskStarted
from fedsim.state_machines.task import TaskMachine


class Recorder:
    """Records what the machines of a simulated world were asked, and what they answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: dict[str, list[bytes]] = {}
        self.actions: dict[str, list[tuple[object, ...]]] = {}
        begin_task, handle_task = TaskMachine.begin, TaskMachine.handle
        begin_node, handle_node = NodeMachine.begin, NodeMachine.handle

        def begin(machine: TaskMachine, now: float) -> list[on_server.Action]:
            event = on_server.TaskStarted(machine.plan, machine.restored, machine.own_testset)
            return self.record("server", machine, event, now, begin_task(machine, now))

        def handle(machine: TaskMachine, event: on_server.Event, now: float) -> list[on_server.Action]:
            return self.record("server", machine, event, now, handle_task(machine, event, now))

        def node_begin(machine: NodeMachine) -> list[on_node.Action]:
            event = NodeTaskStarted(machine.assignment, tuple(machine.stored))
            return self.record(f"node {machine.assignment.first_client}", machine, event, 0, begin_node(machine))

        def node_handle(machine: NodeMachine, event: on_node.Event) -> list[on_node.Action]:
            host = f"node {machine.assignment.first_client}"
            return self.record(host, machine, event, 0, handle_node(machine, event))

        monkeypatch.setattr(TaskMachine, "begin", begin)
        monkeypatch.setattr(TaskMachine, "handle", handle)
        monkeypatch.setattr(NodeMachine, "begin", node_begin)
        monkeypatch.setattr(NodeMachine, "handle", node_handle)

    def record(
        self, host: str, machine: TaskMachine | NodeMachine, event: object, now: float, actions: list[object]
    ) -> list[object]:
        line = encode_event(LoggedEvent(now, event, machine.phase, action_names(actions)))
        self.lines.setdefault(host, []).append(line)
        self.actions.setdefault(host, []).append(tuple(actions))
        return actions


def recorded_world(monkeypatch: pytest.MonkeyPatch, seed: int) -> Recorder:
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        World(SETTINGS, seed, faults=0.3).run()
    return recorder


@pytest.mark.parametrize("seed", range(5))
def test_the_events_of_a_disaster_replayed_give_the_same_actions_and_phases(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = recorded_world(monkeypatch, seed)
    assert len(recorder.lines) == 4
    for host, lines in recorder.lines.items():
        replayed = list(replay(lines))
        assert [event.actions for event in replayed] == recorder.actions[host]
        assert all(event.same for event in replayed)


def test_a_machine_that_answers_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = recorded_world(monkeypatch, 0).lines["server"]
    dropped = next(index for index, line in enumerate(lines) if b"InitialModelMade" in line)
    assert not all(event.same for event in replay(lines[:dropped] + lines[dropped + 1 :]))


def test_a_line_that_a_crash_cut_off_ends_the_log_and_any_other_broken_line_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = recorded_world(monkeypatch, 0).lines["server"]
    assert len(list(replay([*lines[:5], lines[5][:20]]))) == 5
    with pytest.raises(BadInput, match="not a line of an event log"):
        list(replay([lines[0], b"{}\n", lines[1]]))


def test_every_event_survives_the_log() -> None:
    for event in (
        on_server.PhaseAnswered("a", "statistics", 0, "x"),
        on_server.Aggregated(3, finite=False),
        on_node.Failed("no", refused=True, round=2),
        on_node.WorkersIdle(2),
    ):
        logged = LoggedEvent(1.5, event, "training", ("Commit",), "ValueError: x")
        assert decode_event(encode_event(logged)) == logged


def test_a_long_log_is_cut_where_a_snapshot_continues_it_and_still_replays(tmp_path: Path) -> None:
    file = EventFile(tmp_path, segment_bytes=8_000)
    machine, plan, sends = started(SETTINGS.model_copy(update={"num_rounds": 60}))
    file.rotate(on_server.TaskStarted(plan, machine.restored, machine.own_testset), 0)
    for number in range(1, 60):
        for event in [*answers(sends), on_server.Aggregated(number, finite=True)]:
            actions = file.record(
                event, number, lambda event=event, now=number: machine.handle(event, now), lambda: machine.phase
            )
            if file.rotation_due and (snapshot := machine.snapshot()) is not None:
                file.rotate(on_server.TaskStarted(plan, snapshot, machine.own_testset), number)
        sends = [action for action in actions if isinstance(action, on_server.SendGlobal)]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * 8_000
    file.keep(tmp_path / "events", "task-000001")
    replayed = list(replay((tmp_path / "events" / "task-000001.jsonl").read_bytes().splitlines(keepends=True)))
    assert len(replayed) > 5
    assert replayed[0].logged.at > 1, "the oldest part was dropped"
    assert all(event.same for event in replayed)


def test_only_the_newest_logs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_file, "KEPT_LOGS", 2)
    for number in range(4):
        EventFile(tmp_path / f"{number}").keep(tmp_path / "events", f"task-{number}")
    assert len(list((tmp_path / "events").iterdir())) == 2


def test_a_log_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = EventFile(tmp_path / "file")
    assert file.record(on_node.WorkersIdle(1), 0, lambda: ["action"], lambda: "ready") == ["action"]
    file.rotate(on_node.WorkersIdle(1), 0)
    file.keep(tmp_path / "file" / "events", "task-1")


def test_an_event_whose_handling_raises_is_recorded_with_the_exception(tmp_path: Path) -> None:
    def fail() -> list[object]:
        raise KeyError("x")

    with pytest.raises(KeyError):
        EventFile(tmp_path).record(on_node.WorkersIdle(1), 0, fail, lambda: "ready")
    assert decode_event((tmp_path / "events.jsonl").read_bytes()).problem == "KeyError: 'x'"


@pytest.mark.parametrize("name", state_diagrams.TABLES)
def test_the_committed_diagrams_show_the_transition_tables(name: str) -> None:
    committed = (state_diagrams.PICTURES / f"state-{name}.svg").read_text(encoding="utf-8")
    assert committed == state_diagrams.draw(state_diagrams.TABLES[name]), "run `make diagrams`"
