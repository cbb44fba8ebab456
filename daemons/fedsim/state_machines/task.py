"""The state machine of one task on the server: events in, actions out, no input or output of its own.

The driver (`fedsim.server.task`) turns what happens into events, carries out the actions in order, and after a restart
passes what is stored (`Restored`); the task then continues as if nothing had happened. `phases.TASK_TRANSITIONS` lists
the phases and what moves between them.

A node that cannot be reached when the task ends receives the final model later: the server keeps it for those in
`undelivered`. A node that fails during the training is absent until it reports that it is ready again: rounds continue
without it as far as `min_responses` allows. That depends on its newest report alone, so a restarted server decides the
same. Once the last round is committed, no problem of a node fails the task any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedsim.learning.phases import Position
from fedsim.messages import TaskReport
from fedsim.state_machines import task_events as events
from fedsim.state_machines.committed_models import CommittedModels
from fedsim.state_machines.final_delivery import FinalDelivery
from fedsim.state_machines.phases import TASK_TRANSITIONS, ExtensionPhase, PhaseRunner, TaskPhase
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.round import RoundCollector
from fedsim.state_machines.task_events import Action, Event, Finish, RecordEvent, Restored, TaskStarted
from fedsim.update import Update

_TESTSET_PARTS = frozenset({"data", "label"})


class TaskMachine:
    """One task from its plan to its end. `begin` once, then `handle` for every event; both return actions in order.

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
        self.committed = restored.committed
        self.counts = restored.counts
        self.phase = TaskPhase.CLOSING if self._trained else TaskPhase.PREPARING
        self._trigger = TaskStarted.__name__
        self._testset_parts = set(_TESTSET_PARTS if own_testset else restored.testset_parts)
        self._models = CommittedModels(plan.settings, restored.kept, restored.evaluated, restored.saved)
        self._delivery = FinalDelivery()
        self._extensions = PhaseRunner(extensions, restored.completed_phases)
        self._ready: dict[str, tuple[int, ...]] = {}
        self._collector: RoundCollector | None = None
        self._roster: events.WriteRoster | None = None
        self._absent: dict[str, str] = dict(restored.absent)  # nodes that take no part now, and why

    # ------------------------------------------------------------ what progress reports show

    @property
    def ended(self) -> bool:
        """Whether the task is over: no event has an effect any more."""
        return self.phase is TaskPhase.ENDED

    @property
    def step(self) -> str:
        """The phase, or the extension phase that is under way."""
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
            return tuple(node for node in self.plan.nodes if node not in self._ready)
        if not self._has_testset and self.plan.testset_from is not None:
            return (self.plan.testset_from,)
        return ()

    @property
    def undelivered(self) -> tuple[str, ...]:
        """The nodes that the final model is on its way to."""
        return self._delivery.pending

    @property
    def without_final(self) -> tuple[str, ...]:
        """The nodes that will not receive the final model."""
        return tuple(sorted(self._absent))

    @property
    def wake_at(self) -> float | None:
        """When `TimePassed` is due; None if nothing depends on time."""
        if self._extensions.deadline is not None:
            return self._extensions.deadline
        if self._collector is not None and not self._collector.closed:
            return self._collector.wake_at
        return self._delivery.deadline

    def accepts_updates_of(self, number: int) -> bool:
        """Whether an update of this round can still count."""
        return not self.ended and number > self.committed

    def snapshot(self) -> Restored | None:
        """What a new machine needs to continue like this one; None while more than that is in memory."""
        if self.phase is not TaskPhase.TRAINING or self._collector is None or not self._collector.untouched:
            return None
        models = self._models
        return Restored(
            committed=self.committed,
            counts=self.counts,
            kept=frozenset(models.kept),
            evaluated=frozenset(models.evaluated & models.kept),
            saved=frozenset(models.saved & models.kept),
            testset_parts=frozenset(self._testset_parts),
            completed_phases=self._extensions.completed,
            absent=tuple(sorted(self._absent.items())),
        )

    # ------------------------------------------------------------ events in, actions out

    def begin(self, now: float) -> list[Action]:
        """The first actions, of a new task as of one that is resumed."""
        actions: list[Action] = []
        if not self._trained:  # after that a node that ended would only begin again
            actions += [events.Assign(node) for node in self.plan.nodes]
        if self.committed < 0:
            actions.append(events.CreateInitialModel())
        for number in sorted(self._models.kept):
            actions += self._models.process(number, testset=self._has_testset)
        actions += self._models.clear(self.committed)
        if self.restored.roster is not None:
            self._roster = self.restored.roster
            self._open(self._roster.round, now).reopen_closed()
            self._move(TaskPhase.AGGREGATING)
            return actions + self._aggregate(now)
        return actions + self._advance(now)

    def handle(self, event: Event, now: float) -> list[Action]:
        """The actions that `event` causes; none after `Finish`."""
        if self.ended:
            return []
        self._trigger = type(event).__name__
        match event:
            case events.NodeReported(node, report):
                return self._node_reported(node, report, now)
            case events.InitialModelMade():
                return self._commit(0, now) if self.committed < 0 else []
            case events.TestsetPartArrived(node, part):
                return self._testset_part_arrived(node, part, now)
            case events.UpdateArrived(update):
                return self._update_arrived(update, now)
            case events.Aggregated(number, finite):
                return self._aggregated(number, now, finite=finite)
            case events.Evaluated(number):
                save = self._models.was_evaluated(number)
                return save + self._models.clear(self.committed) + self._advance(now)
            case events.Saved(number):
                self._models.saved.add(number)
                return self._models.clear(self.committed) + self._advance(now)
            case events.FinalDelivered(node):
                self._delivery.settle(node)
                return self._advance(now)
            case events.NodeRefused(node, reason):
                return self._node_refused(node, reason, now)
            case events.PhaseAnswered():
                return self._extensions.handle(event) + self._continue_extension(now)
            case events.TimePassed():
                return self._time_passed(now)
            case events.StopRequested(reason):
                return self._finish("stopped", reason)
            case events.Broken(reason):
                return self._finish("failed", reason)
            case TaskStarted():
                raise ValueError("a machine is started by `begin`")

    # ------------------------------------------------------------ reports of nodes

    @property
    def _trained(self) -> bool:
        """Whether the last round is committed: from then on no problem of a node can fail the task."""
        return self.committed >= self.settings.num_rounds

    def _node_reported(self, node: str, report: TaskReport | None, now: float) -> list[Action]:
        if node not in self.plan.nodes:
            return []
        if self._trained:
            return self._reported_after_training(node, report, now)
        if report is None:  # the node does not know the task (any more); what it still has is not sent again
            return [events.Assign(node), *self._send_globals([node]), *self._extensions.request(node)]
        match report.state:
            case "failed" if self.counts is not None and self.settings.min_responses < 1:
                return self._node_failed(node, f"failed: {report.reason}", now)
            case "refused" | "failed":
                return self._finish("failed", f"node {node} {report.state}: {report.reason}")
            case "diverged":
                return self._finish("failed", f"diverged in round {report.round}: {report.reason}")
            case "ready":
                return self._node_ready(node, report, now)
        return []

    def _reported_after_training(self, node: str, report: TaskReport | None, now: float) -> list[Action]:
        state = None if report is None else report.state
        if report is not None and state in {"refused", "failed", "diverged"}:
            self._exclude_from_delivery(node, f"{state}: {report.reason}")
        elif state == "ready" and self._absent.pop(node, None) is not None and self._delivery.started:
            return self._delivery.add(node, self.committed)
        elif state in {"closing", None}:
            # It has the final model; or it ended the task with it, or lost everything: there is nothing to wait for.
            self._delivery.settle(node)
        return self._advance(now)

    def _exclude_from_delivery(self, node: str, why: str) -> None:
        self._absent[node] = why
        self._delivery.settle(node)
        self._extensions.node_left(node)

    def _node_failed(self, node: str, why: str, now: float) -> list[Action]:
        """During the training a node fails: its clients are missing from now on."""
        if node in self._absent:
            return []
        self._absent[node] = why
        if self._collector is not None and not self._collector.closed:
            self._collector.exclude(node)
        self._extensions.node_left(node)
        record = RecordEvent("node_failed", f"node {node} {why}; the task goes on without its clients")
        return [record, *self._close_if_enough(now), *self._continue_extension(now)]

    def _node_ready(self, node: str, report: TaskReport, now: float) -> list[Action]:
        share = next(share for share in self.plan.shares if share.node == node)
        if sum(clients for clients, _ in report.num_examples) != share.num_clients:
            return self._finish("failed", f"node {node} reported examples of other clients than its own")
        counts = tuple(count for clients, count in report.num_examples for _ in range(clients))
        if self.counts is not None:
            fixed = self.counts[share.first_client : share.first_client + share.num_clients]
            if counts != fixed:
                return self._finish("failed", f"node {node}'s data changed during the task: start it again")
            return self._node_recovered(node)
        self._ready[node] = counts
        if len(self._ready) < len(self.plan.nodes):
            return []
        self.counts = tuple(count for name in self.plan.nodes for count in self._ready[name])
        return [events.RecordCounts(self.counts), *self._advance(now)]

    def _node_recovered(self, node: str) -> list[Action]:
        if self._absent.pop(node, None) is None:
            return []
        if self._collector is not None and not self._collector.closed:
            self._collector.include(node)
        return [RecordEvent("node_back", f"node {node} takes part again"), *self._send_globals([node])]

    def _node_refused(self, node: str, reason: str, now: float) -> list[Action]:
        if not self._trained:
            return self._finish("failed", f"node {node} refused {reason}")
        self._exclude_from_delivery(node, f"refused {reason}")
        return self._advance(now)

    # ------------------------------------------------------------ the test set and the models

    @property
    def _has_testset(self) -> bool:
        return self._testset_parts >= _TESTSET_PARTS

    def _testset_part_arrived(self, node: str, part: str, now: float) -> list[Action]:
        if self._has_testset or node != self.plan.testset_from:
            return []
        self._testset_parts.add(part)
        return self._models.evaluate(sorted(self._models.kept), testset=self._has_testset) + self._advance(now)

    def _commit(self, number: int, now: float) -> list[Action]:
        self.committed = number
        self._models.kept.add(number)
        if self._trained:
            self._move(TaskPhase.CLOSING)
        clear = [events.ClearUpdates(number)] if number > 0 else []
        follow = self._models.process(number, testset=self._has_testset)
        return [events.Commit(number), *clear, *follow, *self._advance(now), *self._models.clear(number)]

    def _advance(self, now: float) -> list[Action]:
        """Open the next round, or approach the end, as soon as everything that it needs is there."""
        if self.ended or self._collector is not None or self.committed < 0:
            return []
        if self._trained:
            return self._approach_end(now)
        if self.counts is None or not self._has_testset:
            return []
        actions: list[Action] = []
        if self.committed == 0:
            actions, complete = self._extend(Position.BEFORE_TRAINING, now)
            if not complete:
                return actions
        self._open(self.committed + 1, now)
        self._move(TaskPhase.TRAINING)
        return actions + (self._close_if_enough(now) or self._send_globals(self.plan.nodes))

    def _approach_end(self, now: float) -> list[Action]:
        last = self.committed
        if not self._models.only_finished(last):
            return []
        actions: list[Action] = []
        if not self._delivery.started:
            actions, complete = self._extend(Position.AFTER_TRAINING, now)
            if not complete:
                return actions
            actions += self._delivery.start(self._present, last, now)
        if not self._delivery.finished(now):
            return actions
        reason = f"{last} rounds done"
        if self.undelivered:
            reason += f"; the final model still goes to {', '.join(self.undelivered)}"
        if self._absent:
            without = ", ".join(f"{node} ({why})" for node, why in sorted(self._absent.items()))
            reason += f"; without the final model: {without}"
        return actions + self._finish("completed", reason)

    def _finish(self, outcome: str, reason: str) -> list[Action]:
        self._move(TaskPhase.ENDED)
        if outcome == "completed":
            return [Finish(outcome, reason, self.without_final, self.undelivered)]
        return [Finish(outcome, reason, self.plan.nodes)]

    def _move(self, phase: TaskPhase) -> None:
        self.phase = TASK_TRANSITIONS.move(self.phase, phase, self._trigger)

    # ------------------------------------------------------------ extension phases and time

    @property
    def _present(self) -> tuple[str, ...]:
        return tuple(node for node in self.plan.nodes if node not in self._absent)

    def _extend(self, position: Position, now: float) -> tuple[list[Action], bool]:
        """Run the extension phases of a position; returns their actions, and whether all are complete."""
        return self._extensions.run(position, self.round, self._present, now)

    def _continue_extension(self, now: float) -> list[Action]:
        """Continue after an extension phase that may now be complete."""
        if self.ended or self._extensions.current is None:
            return []
        return self._aggregate(now) if self.phase is TaskPhase.AGGREGATING else self._advance(now)

    def _time_passed(self, now: float) -> list[Action]:
        problem = self._extensions.expire(now)
        if problem is not None:
            return self._finish("failed", problem)
        return self._continue_extension(now) + self._close_if_enough(now) + self._advance(now)

    # ------------------------------------------------------------ the round

    def _open(self, number: int, now: float) -> RoundCollector:
        assert self.counts is not None  # noqa: S101 - no round opens without them
        deadline = now + self.settings.round_timeout_seconds
        self._collector = RoundCollector(self.plan, number, self.counts, deadline, self._absent)
        return self._collector

    def _send_globals(self, nodes: Iterable[str]) -> list[Action]:
        """The round's model to those of `nodes` that train in it."""
        collector = self._collector
        if collector is None or collector.closed:
            return []
        return [action for node in nodes if (action := collector.broadcast(node)) is not None]

    def _update_arrived(self, update: Update, now: float) -> list[Action]:
        collector = self._collector
        if collector is None or collector.closed or not collector.expects(update):
            # An update of the round that is being aggregated may be part of the roster: its file stays.
            in_roster = collector is not None and collector.closed and update.base_round == collector.number
            return [] if in_roster else [events.DiscardUpdate(update)]
        return self._close_if_enough(now) if collector.add(update) else []

    def _close_if_enough(self, now: float) -> list[Action]:
        """Close the round once every expected update, or after the deadline enough of them, has arrived."""
        collector = self._collector
        if self.ended or collector is None or collector.closed:
            return []
        if collector.hopeless:
            who = "; ".join(f"node {node} {why}" for node, why in sorted(self._absent.items()))
            return self._finish("failed", f"{who}; too few clients are left for round {collector.number}")
        if not (collector.complete or collector.enough(now)):
            return []
        self._roster = collector.close()
        self._move(TaskPhase.AGGREGATING)
        return [self._roster, *self._aggregate(now)]

    def _aggregate(self, now: float) -> list[Action]:
        """Aggregate the roster's updates once the extension phases within the round are complete."""
        assert self._roster is not None  # noqa: S101 - it was written just before
        actions, complete = self._extend(Position.WITHIN_ROUND, now)
        return [*actions, events.AggregateRound(self._roster.round, self._roster.updates)] if complete else actions

    def _aggregated(self, number: int, now: float, *, finite: bool) -> list[Action]:
        if number != self.committed + 1 or self._collector is None:
            return []
        if not finite:
            reason = f"diverged in round {number}: the model is no longer finite; try a smaller learning rate"
            return self._finish("failed", reason)
        self._collector = self._roster = None
        return self._commit(number, now)
