"""The phases of a task on the server, and further ones that a strategy or the update pipeline adds.

A task is prepared, trained and aggregated round by round, and closed (`TaskPhase`). An `ExtensionPhase` runs at one of
three positions (`Position`) in between; those of a position run one after another, each with a deadline.

    preparing → [before training] → training → [within round] → aggregating → … → closing → [after training] → end
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum

from fedsim.learning.phases import Content, Phase, PhaseContext, Position
from fedsim.state_machines import task_events as events
from fedsim.state_machines.task_events import Action, CompletePhase, PhaseAnswered, RecordEvent, RequestAnswer
from fedsim.state_machines.transitions import Transition, TransitionTable, names


class TaskPhase(StrEnum):
    """What a task is doing; the values are what progress reports show."""

    PREPARING = "preparing"
    TRAINING = "training"
    AGGREGATING = "aggregating"
    EVALUATING = "evaluating"
    CLOSING = "closing"
    ENDED = "ended"


_PREPARED = names(
    events.TaskStarted,
    events.InitialModelMade,
    events.NodeReported,
    events.TestsetPartArrived,
    PhaseAnswered,
    events.TimePassed,
    events.Evaluated,
    events.NodeTested,
)
_TESTED = names(events.Evaluated, events.NodeTested, events.NodeReported, events.TimePassed)
_ENDING = names(events.StopRequested, events.Broken, events.NodeReported, events.NodeRefused, events.TimePassed)

TASK_TRANSITIONS = TransitionTable(
    (TaskPhase.PREPARING, TaskPhase.CLOSING),
    (
        Transition(
            TaskPhase.PREPARING, TaskPhase.TRAINING, _PREPARED, "initial model, counts and test set are available"
        ),
        Transition(
            TaskPhase.PREPARING, TaskPhase.AGGREGATING, names(events.TaskStarted), "resumed after a roster was written"
        ),
        Transition(
            TaskPhase.TRAINING,
            TaskPhase.AGGREGATING,
            # An asynchronous round can have enough as soon as it opens.
            tuple(dict.fromkeys((*names(events.UpdateArrived, events.Aggregated), *_PREPARED))),
            "all updates arrived, or the deadline passed and enough did",
        ),
        Transition(TaskPhase.AGGREGATING, TaskPhase.TRAINING, names(events.Aggregated), "the round is committed"),
        Transition(TaskPhase.AGGREGATING, TaskPhase.CLOSING, names(events.Aggregated), "the last round is committed"),
        Transition(
            TaskPhase.AGGREGATING,
            TaskPhase.EVALUATING,
            names(events.Aggregated),
            "the round is committed, and its test may end the task",
        ),
        Transition(TaskPhase.EVALUATING, TaskPhase.TRAINING, _TESTED, "the test does not end the task"),
        Transition(TaskPhase.EVALUATING, TaskPhase.CLOSING, _TESTED, "a condition of stop_when holds"),
        Transition(
            TaskPhase.PREPARING,
            TaskPhase.CLOSING,
            _TESTED,
            "resumed before the test of a round was recorded, and a condition of stop_when holds",
        ),
        Transition(TaskPhase.EVALUATING, TaskPhase.ENDED, _ENDING, "stopped or failed"),
        Transition(
            TaskPhase.PREPARING,
            TaskPhase.ENDED,
            (*_ENDING, *names(events.TaskStarted, PhaseAnswered)),
            "stopped, failed or postponed, or the statistics of all nodes have arrived",
        ),
        Transition(
            TaskPhase.TRAINING,
            TaskPhase.ENDED,
            tuple(dict.fromkeys((*_ENDING, *names(events.Aggregated), *_PREPARED))),
            "stopped or failed, also because too few clients are left",
        ),
        Transition(
            TaskPhase.AGGREGATING,
            TaskPhase.ENDED,
            (*_ENDING, *names(events.Aggregated)),
            "stopped or failed, also because the model diverged",
        ),
        Transition(
            TaskPhase.CLOSING,
            TaskPhase.ENDED,
            (
                *_ENDING,
                *names(
                    events.TaskStarted,
                    events.Evaluated,
                    events.NodeTested,
                    events.Saved,
                    events.FinalDelivered,
                    PhaseAnswered,
                ),
            ),
            "everything is recorded and the final model delivered, or its deadline passed",
        ),
    ),
)


Answers = Mapping[str, Mapping[str, Content]]
"""The answers of completed phases: by the phase's name and the node's."""


class ExtensionPhase(ABC):
    """A phase that a strategy or the update pipeline adds to a task.

    One object serves all rounds of a task. Unless it was completed, a phase is run again after a restart: requests may
    be repeated.
    """

    name: str
    position: Position
    timeout_seconds: float

    @abstractmethod
    def start(self, round_number: int, nodes: Collection[str], earlier: Answers) -> list[Action]:
        """Begin the phase in a round (0 before training), with the nodes that take part and what is known by now."""

    @abstractmethod
    def handle(self, answer: PhaseAnswered) -> list[Action]:
        """Process the answer of a node."""

    @abstractmethod
    def node_left(self, node: str) -> None:
        """Expect nothing more from a node."""

    @abstractmethod
    def request(self, node: str) -> list[Action]:
        """Repeat what was sent to a node that lost it."""

    @property
    @abstractmethod
    def waiting_for(self) -> tuple[str, ...]:
        """The nodes that have not answered; the phase is complete when there are none."""

    @abstractmethod
    def complete(self) -> tuple[CompletePhase, str]:
        """End the phase: what is recorded of it, and a sentence for users, which may be empty."""

    @property
    def unanswered(self) -> str:
        """Who did not answer in time, for people."""
        return f"{self.name}: no answer within {self.timeout_seconds:g} s from {', '.join(self.waiting_for)}"

    def expired(self) -> str | None:
        """Why the task cannot continue after the deadline; None if it continues with what has arrived."""
        return self.unanswered


class NodeQuery(ExtensionPhase):
    """Ask every node that takes part, and wait for all answers, as a `Phase` of a strategy or a transform declares."""

    def __init__(self, phase: Phase) -> None:
        self.name = phase.name
        self.position = phase.position
        self.timeout_seconds = phase.timeout_seconds
        self.answers: dict[str, str] = {}
        self._phase = phase
        self._round = 0
        self._nodes: tuple[str, ...] = ()
        self._question = "{}"

    def start(self, round_number: int, nodes: Collection[str], earlier: Answers) -> list[Action]:
        """Ask all nodes."""
        self.answers = {}
        self._round = round_number
        self._nodes = tuple(nodes)
        self._question = json.dumps(self._phase.ask(PhaseContext(round_number, self._nodes, earlier)), allow_nan=False)
        return [action for node in self._nodes for action in self.request(node)]

    def request(self, node: str) -> list[Action]:
        """Ask a node."""
        return [RequestAnswer(node, self.name, self._round, self._question)] if node in self.waiting_for else []

    def handle(self, answer: PhaseAnswered) -> list[Action]:
        """Keep the answer; the first of each node counts."""
        if answer.node in self._nodes:
            self.answers.setdefault(answer.node, answer.content)
        return []

    def node_left(self, node: str) -> None:
        """Do not wait for the node."""
        self._nodes = tuple(name for name in self._nodes if name != node)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The nodes without an answer."""
        return tuple(node for node in self._nodes if node not in self.answers)

    def complete(self) -> tuple[CompletePhase, str]:
        """The answers in the order of the nodes' names, and the phase's summary of them."""
        answers = tuple(sorted(self.answers.items()))
        summary = self._phase.summary({node: json.loads(content) for node, content in answers})
        return CompletePhase(self.name, self._round, answers), f"{self.name}: {summary}" if summary else ""

    def expired(self) -> str | None:
        """As the phase declares."""
        return super().expired() if self._phase.required else None


class PhaseRunner:
    """Runs the extension phases of a task. `current` is the one that is under way, until `deadline`."""

    def __init__(self, phases: Sequence[ExtensionPhase], completed: Iterable[CompletePhase]) -> None:
        self.current: ExtensionPhase | None = None
        self.deadline: float | None = None
        self.completed = tuple(completed)
        self._phases = tuple(phases)
        self._round = 0
        self._expired = False

    def run(
        self, position: Position, round_number: int, nodes: Collection[str], now: float
    ) -> tuple[list[Action], bool]:
        """Run the phases of a position as far as possible; returns the actions, and whether all are complete."""
        actions: list[Action] = []
        for phase in self._phases:
            if phase.position is not position or self._is_complete(phase, round_number):
                continue
            if self.current is not phase:
                self.current = phase
                self.deadline = now + phase.timeout_seconds
                self._round = round_number
                self._expired = False
                actions += phase.start(round_number, nodes, self._answers(round_number))
            if phase.waiting_for and not self._expired:
                return actions, False
            if phase.waiting_for:
                actions.append(RecordEvent("phase_incomplete", f"{phase.unanswered}; the task goes on without"))
            done, summary = phase.complete()
            self.completed = (*(old for old in self.completed if old.round in {0, round_number}), done)
            self.current = self.deadline = None
            actions.append(done)
            if summary:
                actions.append(RecordEvent("phase", summary))
        return actions, True

    def _is_complete(self, phase: ExtensionPhase, round_number: int) -> bool:
        return any((done.phase, done.round) == (phase.name, round_number) for done in self.completed)

    def _answers(self, round_number: int) -> Answers:
        return {
            done.phase: {node: json.loads(content) for node, content in done.answers}
            for done in self.completed
            if done.round in {0, round_number}
        }

    def handle(self, answer: PhaseAnswered) -> list[Action]:
        """Pass an answer to the phase that asked; answers to any other are too late."""
        if self.current is None or (self.current.name, self._round) != (answer.phase, answer.round):
            return []
        return self.current.handle(answer)

    def expire(self, now: float) -> str | None:
        """Apply the deadline; returns why the task cannot continue, if it cannot."""
        if self.current is None or self.deadline is None or now < self.deadline:
            return None
        self._expired = True
        self.deadline = None
        return self.current.expired()

    def node_left(self, node: str) -> None:
        """Expect nothing more from a node."""
        if self.current is not None:
            self.current.node_left(node)

    def request(self, node: str) -> list[Action]:
        """Repeat what the current phase sent to a node."""
        return [] if self.current is None else self.current.request(node)
