"""The state machine of one task on a node: events in, actions out, no input or output of its own.

With each `globalparam` the node trains its chunks and sends their updates. An update is kept until the next
`globalparam` reports that it was used, and offered again from time to time: a server that was restored from a backup
may have lost it. A `globalparam` of an earlier round comes from such a server, and the node trains that round again.
The final model ends the task. `NODE_TRANSITIONS` lists the phases.

Where rounds are asynchronous (`Assignment.slots`), the next model interrupts no client that is training: its update is
sent all the same, and kept until a `globalparam` lists it as used or has left its round behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import StrEnum

from fedsim.errors import SuspendReason
from fedsim.messages import MAX_RUNS, MAX_TEXT, Assignment, Broadcast, Chunk, TaskReport, Uplink
from fedsim.state_machines.node_events import (
    Action,
    Answered,
    AnswerRequest,
    ClearGlobals,
    ClearUsedUpdates,
    End,
    EndWorkers,
    EvaluationOrdered,
    Event,
    Failed,
    FinalKept,
    GlobalArrived,
    KeepFinal,
    LoadData,
    Loaded,
    ModelTested,
    NodeTaskStarted,
    Report,
    ReportDelivered,
    RequestArrived,
    SendAnswer,
    SendReport,
    SendTestset,
    SendUpdates,
    Stopped,
    TestModel,
    TrainChunk,
    Trained,
    TrainingDiverged,
    UpdateKey,
    UsePending,
    WorkersIdle,
)
from fedsim.state_machines.policy import beyond_assignment
from fedsim.state_machines.suspension import Suspended
from fedsim.state_machines.transitions import Transition, TransitionTable, names


class NodePhase(StrEnum):
    """What the task is doing on this node; the values are what the node reports."""

    LOADING = "loading"
    READY = "ready"
    CLOSING = "closing"
    REFUSED = "refused"
    FAILED = "failed"
    DIVERGED = "diverged"
    ENDED = "ended"


_GIVEN_UP = (NodePhase.REFUSED, NodePhase.FAILED, NodePhase.DIVERGED)
_OVER = names(Stopped, FinalKept)
NODE_TRANSITIONS = TransitionTable(
    (NodePhase.LOADING,),
    (
        Transition(NodePhase.LOADING, NodePhase.READY, names(Loaded), "the data is loaded"),
        Transition(NodePhase.LOADING, NodePhase.REFUSED, names(Failed, GlobalArrived), "the rules forbid the task"),
        Transition(NodePhase.LOADING, NodePhase.FAILED, names(Failed, Loaded), "the data cannot be used"),
        Transition(NodePhase.LOADING, NodePhase.CLOSING, names(GlobalArrived), "the final model arrived"),
        Transition(NodePhase.LOADING, NodePhase.DIVERGED, names(TrainingDiverged), "parameters are not finite"),
        Transition(NodePhase.READY, NodePhase.CLOSING, names(GlobalArrived), "the final model arrived"),
        Transition(NodePhase.READY, NodePhase.DIVERGED, names(TrainingDiverged), "parameters are not finite"),
        Transition(NodePhase.READY, NodePhase.FAILED, names(Failed), "a chunk cannot be trained, or workers died"),
        Transition(NodePhase.READY, NodePhase.REFUSED, names(Failed, GlobalArrived), "the rules forbid the task"),
        Transition(NodePhase.CLOSING, NodePhase.FAILED, names(Failed), "the final model cannot be stored"),
        Transition(NodePhase.CLOSING, NodePhase.REFUSED, names(Failed), "the rules forbid the task"),
        Transition(NodePhase.CLOSING, NodePhase.ENDED, names(FinalKept), "the final model is stored"),
        *(
            Transition(phase, NodePhase.ENDED, _OVER, "the server ended the task")
            for phase in (NodePhase.LOADING, NodePhase.READY, *_GIVEN_UP)
        ),
    ),
)


class NodeMachine:
    """One task on one node. `begin` once, then `handle` for every event; both return actions in order."""

    def __init__(self, assignment: Assignment, stored: Iterable[UpdateKey] = ()) -> None:
        """Make or resume a task; `stored` are the updates that a restart found on disk."""
        self.assignment = assignment
        self.round = 0
        self.phase = NodePhase.LOADING
        self.stored = frozenset(stored)
        self.trained: set[tuple[int, int]] = set()  # (round, chunk)
        self.suspended: SuspendReason | None = None
        self._trigger = NodeTaskStarted.__name__
        self._reported = NodePhase.LOADING
        self._reason = ""
        self._num_examples: tuple[tuple[int, int], ...] = ()
        self._partition = ""
        self._untrained: deque[Chunk] = deque()
        self._untested: deque[int] = deque()
        self._ordered: set[int] = set()
        self._idle = 0
        self._unanswered: list[AnswerRequest] = []  # until the data is loaded
        self._asked: set[tuple[str, int]] = set()
        self._slots = assignment.slots
        self._training: set[tuple[int, int]] = set()
        self._used_through = 0

    @property
    def ended(self) -> bool:
        """Whether the task is over here: no event has an effect any more."""
        return self.phase is NodePhase.ENDED

    @property
    def models_in_use(self) -> tuple[int, ...]:
        """Asynchronous: the rounds before this one from whose models clients are training."""
        return () if self._slots is None else tuple(sorted({one for one, _ in self._training if one < self.round}))

    @property
    def report(self) -> TaskReport:
        """What the node's next `hello` reports of the task."""
        return TaskReport.model_validate(
            {
                "task": self.assignment.task,
                "state": self._reported.value,
                "reason": self._reason,
                "round": self.round,
                "num_examples": self._num_examples,
                "partition": self._partition,
                "suspended": self.suspended,
            }
        )

    def begin(self) -> list[Action]:
        """The first actions of a task, also of one that is resumed."""
        return [LoadData(), Report()]

    def handle(self, event: Event) -> list[Action]:
        """The actions that `event` causes; none after `End`."""
        if self.ended:
            return []
        self._trigger = type(event).__name__
        match event:
            case Loaded():
                return self._loaded(event)
            case WorkersIdle(count):
                self._idle = count
                return self._train()
            case GlobalArrived(number, broadcast):
                return self._global_arrived(number, broadcast)
            case RequestArrived(phase, number):
                return self._request_arrived(phase, number)
            case EvaluationOrdered(number):
                return self._evaluation_ordered(number)
            case ModelTested(number, content):
                return [SendReport(number, content)] if self.phase is NodePhase.READY else []
            case ReportDelivered(number):
                self._ordered.discard(number)
                return []
            case Answered(phase, number, content):
                return [SendAnswer(phase, number, content)] if self.phase is NodePhase.READY else []
            case Trained(number, chunk):
                return self._chunk_trained(number, chunk)
            # The server continues without a chunk of an earlier round, whose files may be removed already.
            case TrainingDiverged(number, _, chunk) | Failed(_, _, int(number), chunk) if self._is_over(number):
                return self._clear_late(number, chunk)
            case TrainingDiverged(number, client):
                return self._give_up(NodePhase.DIVERGED, f"client {client}'s parameters are no longer finite")
            case Failed(reason, refused):
                return self._give_up(NodePhase.REFUSED if refused else NodePhase.FAILED, reason)
            case Stopped() if self.phase is NodePhase.CLOSING:
                return []  # the task ends as soon as the final model is stored
            case UsePending():
                return self._offer_again() if self.phase is NodePhase.READY else []
            case FinalKept() | Stopped():
                self._move(NodePhase.ENDED)
                return [End()]
            case Suspended(reason):
                self.suspended = reason
                return []
            case NodeTaskStarted():
                raise ValueError("a machine is started by `begin`")

    def _move(self, phase: NodePhase) -> None:
        self.phase = NODE_TRANSITIONS.move(self.phase, phase, self._trigger)
        if phase is not NodePhase.ENDED:
            self._reported = phase

    def _is_over(self, number: int) -> bool:
        """Whether updates of this round are no longer expected."""
        if self._slots is not None and self.phase is not NodePhase.CLOSING:
            return not self._used_through < number <= self.round
        return number != self.round or self.phase is NodePhase.CLOSING

    def _clear_late(self, number: int, chunk: int | None) -> list[Action]:
        """Remove what was computed for a round that is over; what came of a later one may be of the server's past."""
        ended = [one for one in sorted(self._training) if one[0] == number and chunk in (None, one[1])]
        self._training.difference_update(ended[:1])  # the chunk is None if the worker has an older version
        return [] if number > self.round else [ClearUsedUpdates(number), *self._clear_globals()]

    def _clear_globals(self, *, later: bool = False) -> list[Action]:
        """Asynchronous: remove models no longer in use; one that stayed would be mistaken for one that just arrived."""
        return [] if self._slots is None else [ClearGlobals(self.round, self.models_in_use, later)]

    def _loaded(self, loaded: Loaded) -> list[Action]:
        if self.phase is not NodePhase.LOADING:  # a further worker, or a restarted one
            return []
        if len(loaded.num_examples) > MAX_RUNS:
            reason = f"the sizes of {self.assignment.num_clients} uneven partitions do not fit a hello: take fewer"
            return self._give_up(NodePhase.FAILED, reason)
        self._num_examples, self._partition = loaded.num_examples, loaded.partition
        self._move(NodePhase.READY)
        answers, self._unanswered = self._unanswered, []
        return [*([SendTestset()] if self.assignment.send_testset else []), Report(), *answers]

    def _request_arrived(self, phase: str, number: int) -> list[Action]:
        if (phase, number) in self._asked:  # it is being answered, or the answer is on its way
            return []
        self._asked.add((phase, number))
        match self.phase:
            case NodePhase.LOADING:
                self._unanswered.append(AnswerRequest(phase, number))
                return []
            case NodePhase.READY:
                return [AnswerRequest(phase, number)]
        return []

    def _evaluation_ordered(self, number: int) -> list[Action]:
        if number in self._ordered or self.phase not in {NodePhase.LOADING, NodePhase.READY}:
            return []
        self._ordered.add(number)
        self._untested.append(number)
        return self._train()

    def _give_up(self, phase: NodePhase, reason: str) -> list[Action]:
        """Report why, and wait for the server's `stop`: the server, not the node, ends a task."""
        if self.phase in _GIVEN_UP:
            return []
        self._move(phase)
        self._reason = reason[:MAX_TEXT]
        self._untrained.clear()
        self._untested.clear()
        self._training.clear()
        return [EndWorkers(), Report()]

    def _global_arrived(self, number: int, broadcast: Broadcast) -> list[Action]:
        if number == self.round or self.phase in (*_GIVEN_UP, NodePhase.CLOSING):
            return []
        if (problem := beyond_assignment(self.assignment, number, broadcast)) is not None:
            return self._give_up(NodePhase.REFUSED, problem)
        if number < self.round:
            return self._set_back(number, broadcast)
        if broadcast.final:
            self._move(NodePhase.CLOSING)
            self._untrained.clear()
            return [KeepFinal(number)]
        self.round = number
        if self._slots is not None:
            return self._leave_used(broadcast) + self._begin_round(number, broadcast)
        return [ClearUsedUpdates(broadcast.used_through), ClearGlobals(number), *self._begin_round(number, broadcast)]

    def _leave_used(self, broadcast: Broadcast, gone: Iterable[tuple[int, int]] | None = None) -> list[Action]:
        """Asynchronous: drop what was used or, if set back, is `gone`; send what a restart found of earlier rounds."""
        self._used_through, left = broadcast.used_through, {*broadcast.used, *(gone or ())}
        kept = {key for key in self.stored if key[0] > broadcast.used_through and key[:2] not in left}
        self.stored = frozenset(kept)
        self.trained = {one for one in self.trained if one[0] > broadcast.used_through and one not in left}
        unsent = sorted({key[:2] for key in kept if key[0] < self.round} - self.trained)
        self.trained.update(unsent)
        return [
            ClearUsedUpdates(broadcast.used_through, tuple(sorted(left))),
            *self._clear_globals(later=gone is not None),
            *(SendUpdates(*one) for one in unsent),
        ]

    def _set_back(self, number: int, broadcast: Broadcast) -> list[Action]:
        """The server is in an earlier round again: what was trained since is based on models that it no longer has."""
        if self._slots is not None:
            self.round = number
            known = {*self.trained, *(key[:2] for key in self.stored)}
            left = self._leave_used(broadcast, {one for one in known if one[0] > number})
            again = [SendUpdates(*one) for one in sorted(self.trained)]
            return [*left, *again, *self._begin_round(number, broadcast)]
        actions: list[Action] = [ClearUsedUpdates(self.round), ClearGlobals(number, later=True)]
        self.round = number
        self.stored, self.trained = frozenset(), set()
        return actions + self._begin_round(number, broadcast)

    def _begin_round(self, number: int, broadcast: Broadcast) -> list[Action]:
        actions: list[Action] = []
        self._untrained.clear()
        for chunk in broadcast.chunks:
            if self._slots is not None and (number, chunk.id) in self._training | self.trained:
                continue
            if self._was_trained(number, chunk):  # before a restart; sending twice costs nothing
                self.trained.add((number, chunk.id))
                actions.append(SendUpdates(number, chunk.id))
            else:
                self._untrained.append(chunk)
        return actions + self._train()

    def _was_trained(self, number: int, chunk: Chunk) -> bool:
        """Whether all updates of a chunk are stored."""
        clients = (None,) if self.assignment.uplink == Uplink.SUM else chunk.clients
        return self.stored.issuperset((number, chunk.id, client) for client in clients)

    def _chunk_trained(self, number: int, chunk: int) -> list[Action]:
        if self._is_over(number):
            return self._clear_late(number, chunk)
        self._training.discard((number, chunk))
        self.trained.add((number, chunk))
        cleared = number != self.round and number not in self.models_in_use
        return [SendUpdates(number, chunk), *(self._clear_globals() if cleared else [])]

    def _offer_again(self) -> list[Action]:
        testset: list[Action] = [SendTestset()] if self.assignment.send_testset else []
        return testset + [
            SendUpdates(number, chunk)
            for number, chunk in sorted(self.trained)
            if number == self.round or self._slots is not None
        ]

    def _train(self) -> list[Action]:
        """Give idle workers what there is to do: chunks first, for which a round waits, then models to be tested."""
        actions: list[Action] = []
        while self._idle and self.phase is NodePhase.READY:
            if self._untrained and (self._slots is None or len(self._training) < self._slots):
                chunk = self._untrained.popleft()
                self._training.add((self.round, chunk.id))
                actions.append(TrainChunk(self.round, chunk))
            elif self._untested:
                actions.append(TestModel(self._untested.popleft()))
            else:
                break
            self._idle -= 1
        return actions
