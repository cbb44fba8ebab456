"""The state of a task's machine on the server, and what others read of it: progress, deadlines, a snapshot."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.errors import SuspendReason
from fedsim.learning.common_scale import scaling_phases
from fedsim.learning.samplers import make_sampler
from fedsim.state_machines.buffered_round import UpdateBuffer
from fedsim.state_machines.committed_models import CommittedModels
from fedsim.state_machines.course import TaskCourse
from fedsim.state_machines.final_delivery import FinalDelivery
from fedsim.state_machines.participants import Participants
from fedsim.state_machines.phases import ExtensionPhase, PhaseRunner, TaskPhase
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.round import RoundCollector
from fedsim.state_machines.task_events import Restored, TaskStarted, WriteRoster


class TaskMachineState:
    """What a machine knows of its task; `TaskMachine` changes it with events.

    Args:
        plan: of the task.
        restored: what is stored of it.
        own_testset: whether the server has the test set, so that no node sends it.
        extensions: phases that the strategy or the update pipeline adds, in order.
    """

    def __init__(
        self, plan: Plan, restored: Restored, own_testset: bool, extensions: Sequence[ExtensionPhase] = ()
    ) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.own_testset = own_testset
        self.restored = restored
        self.suspended: SuspendReason | None = None
        self.committed = restored.committed
        self._course = TaskCourse(plan, restored)
        self._ending = self._course.reason_to_end(restored.committed)
        self.phase = TaskPhase.CLOSING if self._trained else TaskPhase.PREPARING
        self._trigger = TaskStarted.__name__
        asked = {phase.name for phase in scaling_phases(plan.data_schema)}
        scaled = self.committed > 0 or asked <= {done.phase for done in restored.completed_phases}
        self._models = CommittedModels(
            plan.settings,
            restored,
            own_testset=own_testset,
            scaled=scaled,
            best=self._course.best,
            continued_after=plan.continued_after or 0,
        )
        self._models.last = self.last_round
        self._participants = Participants(plan, restored.counts, dict(restored.absent))
        self._delivery = FinalDelivery()
        self._waited = restored.waited
        self._prepare_until: float | None = None
        self._extensions = PhaseRunner(extensions, restored.completed_phases)
        self._collector: RoundCollector | None = None
        self._roster: WriteRoster | None = None
        self._sampler = make_sampler(plan.settings)
        self._losses = restored.losses
        self._buffer: UpdateBuffer | None = None
        if plan.buffering is not None:
            self._buffer = UpdateBuffer(plan, plan.buffering, restored.used, restored.buffered)

    # ------------------------------------------------------------ what progress reports show

    @property
    def ended(self) -> bool:
        """Whether the task is over: no event has an effect any more."""
        return self.phase is TaskPhase.ENDED

    @property
    def counts(self) -> tuple[int, ...] | None:
        """Examples of each client, once they are fixed."""
        return self._participants.counts

    @property
    def step(self) -> str:
        """The phase, or the extension phase that is under way, or why the task is suspended."""
        if self.suspended is not None:
            return f"suspended: {self.suspended.words}"
        return self.phase.value if self._extensions.current is None else self._extensions.current.name

    @property
    def round(self) -> int:
        """The round that is under way; the last committed one while none is."""
        return self._collector.number if self._collector else max(self.committed, 0)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The nodes that have not answered yet."""
        if self._extensions.current is not None:
            return self._extensions.current.waiting_for
        if self._collector is not None and not self._collector.closed:
            return self._collector.waiting_for
        if self.undelivered:
            return self.undelivered
        if self.counts is None:
            return self._participants.not_ready
        if not self._models.testable and self.plan.testset_from is not None:
            return (self.plan.testset_from,)
        return self._models.node_tests.awaited

    @property
    def undelivered(self) -> tuple[str, ...]:
        """The nodes that the final model is on its way to."""
        return self._delivery.pending

    @property
    def without_final(self) -> tuple[str, ...]:
        """The nodes that will not receive the final model."""
        return tuple(sorted(self._participants.absent))

    @property
    def wake_at(self) -> float | None:
        """When `TimePassed` is due; None if nothing depends on time."""
        tested = self._models.node_tests.deadline
        of_phase = self._deadline_of_phase
        return of_phase if tested is None or (of_phase is not None and of_phase < tested) else tested

    @property
    def _deadline_of_phase(self) -> float | None:
        if self._extensions.deadline is not None:
            return self._extensions.deadline
        if self._collector is not None and not self._collector.closed:
            return self._collector.wake_at
        return self._prepare_until if self._is_preparing else self._delivery.deadline

    @property
    def _is_preparing(self) -> bool:
        """Whether the task waits for nodes to load their data or to send the test set."""
        return self.phase is TaskPhase.PREPARING and self._extensions.current is None and bool(self.waiting_for)

    def waited(self, now: float) -> tuple[int, float] | None:
        """The round that waits for updates, and for how long it has (in seconds); None while none does."""
        if self._collector is None or self._collector.closed:
            return None
        return self._collector.number, now - self._collector.deadline + self.settings.round_timeout_seconds

    def accepts_updates_of(self, number: int) -> bool:
        """Whether an update of this round is examined, in an asynchronous task also if it is too stale."""
        return not self.ended and number > (self.committed if self._buffer is None else 0)

    def snapshot(self) -> Restored | None:
        """What a new machine needs to continue like this one; None while more than that is in memory."""
        if self.phase is not TaskPhase.TRAINING or self._collector is None or not self._collector.untouched:
            return None
        if self._models.node_tests.deadline is not None:
            return None
        models = self._models
        return Restored(
            committed=self.committed,
            counts=self.counts,
            kept=frozenset(models.kept),
            evaluated=frozenset(models.evaluated & models.kept),
            saved=frozenset(models.saved & (models.kept | {models.best})),
            testset_parts=frozenset(self._models.testset_parts),
            completed_phases=self._extensions.completed,
            absent=tuple(sorted(self._participants.absent.items())),
            losses=self._losses,
            tests=self._course.tests,
            totals=self._course.totals,
            node_tested=frozenset(models.node_tests.done & models.kept),
            used=() if self._buffer is None else self._buffer.used,
            buffered=() if self._buffer is None else tuple(self._buffer.waiting.values()),
        )

    @property
    def last_round(self) -> int:
        """The last round: as set, or the one with which the task ends early."""
        return self.committed if self._ending else self.settings.num_rounds

    @property
    def released(self) -> int:
        """The round whose model is the final one, if the task ends with the newest committed round."""
        return self._models.released(self.committed)

    @property
    def _trained(self) -> bool:
        """Whether the last round is committed: from then on no problem of a node can fail the task."""
        return self.committed >= self.last_round

    @property
    def _undecided(self) -> bool:
        """Whether the test of the committed round may end the task."""
        return self._course.decides and self.committed > 0 and self._models.awaits_evaluation(self.committed)
