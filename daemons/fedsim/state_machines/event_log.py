"""The log of a state machine's events as JSON lines, and its replay: the same events give the same actions and phases.

Each line is an event, when it was handled (on the host's monotonic clock), and what the machine answered: the names of
its actions, and its phase afterwards. A start event makes a new machine; after a restart of the daemon, or where an old
part of the log was dropped, another one follows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from fedsim.errors import BadInput
from fedsim.problems import problems_text
from fedsim.state_machines import node_events, task_events
from fedsim.state_machines.node import NodeMachine
from fedsim.state_machines.node_events import NodeTaskStarted
from fedsim.state_machines.phases import ExtensionPhase
from fedsim.state_machines.task import TaskMachine
from fedsim.state_machines.task_events import TaskStarted

_EVENTS = (*get_args(task_events.Event), *get_args(node_events.Event))
_ADAPTERS: dict[str, TypeAdapter[Any]] = {event.__name__: TypeAdapter(event) for event in _EVENTS}


@dataclass(frozen=True)
class LoggedEvent:
    """One line of a log.

    Attributes:
        at: when it was handled, in seconds.
        event: of a task on the server or on a node.
        phase: of the machine afterwards; empty if it was not recorded.
        actions: names of the actions that the event caused.
        problem: the exception that handling it raised, if any.
    """

    at: float
    event: object
    phase: str = ""
    actions: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class ReplayedEvent:
    """An event that was replayed, with the machine's phase and actions this time."""

    logged: LoggedEvent
    phase: str
    actions: tuple[object, ...]

    @property
    def same(self) -> bool:
        """Whether the machine answered as recorded."""
        logged = self.logged
        return not logged.phase or (logged.phase == self.phase and logged.actions == action_names(self.actions))


def action_names(actions: Iterable[object]) -> tuple[str, ...]:
    """The names of actions, as they are logged."""
    return tuple(type(action).__name__ for action in actions)


def encode_event(logged: LoggedEvent) -> bytes:
    """The line of a log, with its end."""
    name = type(logged.event).__name__
    line = {"at": logged.at, "event": name, "data": _ADAPTERS[name].dump_python(logged.event, mode="json")}
    line |= {"phase": logged.phase, "actions": logged.actions}
    if logged.problem:
        line["problem"] = logged.problem
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def decode_event(line: bytes) -> LoggedEvent:
    """Read a line; raises `BadInput` with the problem."""
    try:
        content = json.loads(line)
        event = _ADAPTERS[content["event"]].validate_python(content["data"], strict=False)
        actions = tuple(map(str, content["actions"]))
        return LoggedEvent(float(content["at"]), event, str(content["phase"]), actions, str(content.get("problem", "")))
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        reason = problems_text(error) if isinstance(error, ValidationError) else error
        raise BadInput(f"not a line of an event log: {reason}") from error


def replay(lines: Iterable[bytes], extensions: Sequence[ExtensionPhase] = ()) -> Iterator[ReplayedEvent]:
    """Handle the events of a log again.

    Args:
        lines: of one log, oldest first. Events before the first start are skipped, and so is a line that was cut off at
            the end.
        extensions: the extension phases that the task had.
    """
    machine: _Replayed | None = None
    lines = list(lines)
    for index, line in enumerate(lines):
        try:
            logged = decode_event(line)
        except BadInput:
            if index == len(lines) - 1 and not line.endswith(b"\n"):
                return
            raise
        match logged.event:
            case TaskStarted(plan, restored, own_testset):
                machine = _replay_task(TaskMachine(plan, restored, own_testset, extensions))
            case NodeTaskStarted(assignment, stored):
                machine = _replay_node(NodeMachine(assignment, stored))
        if machine is not None:
            yield machine(logged)


_Replayed = Callable[[LoggedEvent], ReplayedEvent]


def _replay_task(machine: TaskMachine) -> _Replayed:
    def handle(logged: LoggedEvent) -> ReplayedEvent:
        event: Any = logged.event
        start = isinstance(event, TaskStarted)
        actions = machine.begin(logged.at) if start else machine.handle(event, logged.at)
        return ReplayedEvent(logged, machine.phase.value, tuple(actions))

    return handle


def _replay_node(machine: NodeMachine) -> _Replayed:
    def handle(logged: LoggedEvent) -> ReplayedEvent:
        event: Any = logged.event
        actions = machine.begin() if isinstance(event, NodeTaskStarted) else machine.handle(event)
        return ReplayedEvent(logged, machine.phase.value, tuple(actions))

    return handle
