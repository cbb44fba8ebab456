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
from fedsim.learning.samplers import Known, last_losses
from fedsim.messages import TaskReport
from fedsim.state_machines import task_events as events
from fedsim.state_machines.buffered_round import BufferedRound
from fedsim.state_machines.evaluating import EvaluatingTask
from fedsim.state_machines.phases import TaskPhase
from fedsim.state_machines.policy import not_continued
from fedsim.state_machines.round import RoundCollector
from fedsim.state_machines.suspension import Suspended
from fedsim.state_machines.task_events import Action, Event, Finish, RecordEvent, TaskStarted
from fedsim.update import Update


class TaskMachine(EvaluatingTask):
    """One task from its plan to its end. `begin` once, then `handle` for every event; both return actions in order."""

    # ------------------------------------------------------------ events in, actions out

    def begin(self, now: float) -> list[Action]:
        """The first actions, of a new task as of one that is resumed."""
        actions: list[Action] = []
        self._prepare_until = now + self.plan.prepare_timeout_seconds
        self._course.begin(now)
        # After the last round a node that ended would only begin again; in a run that continues another none has begun.
        if not self._trained or self.plan.resumes is not None:
            actions += [events.Assign(node) for node in self.plan.nodes]
        if self.committed < 0 and self.settings.trains:
            actions.append(events.CreateInitialModel())
        if self._models.best is not None:
            actions.append(events.KeepBest(self._models.best))
        for number in sorted(self._models.kept):
            actions += self._models.process(number)
        actions += self._order_tests(now)
        actions += self._models.clear(self.committed)
        if self.restored.roster is not None:
            self._roster = self.restored.roster
            self._open(self._roster.round, now, self._roster.cohort).reopen_with(self._roster)
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
            case events.Evaluated(number, metrics):
                return self._evaluated(number, metrics, now)
            case events.NodeTested(report):
                return self._models.node_tests.add(report, self.plan.nodes) + self._node_tests_completed(now)
            case events.Saved(number):
                remove = self._models.was_saved(number)
                return remove + self._models.clear(self.committed) + self._advance(now)
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
            case Suspended(reason):
                self.suspended = reason
                return []
            case TaskStarted():
                raise ValueError("a machine is started by `begin`")

    # ------------------------------------------------------------ reports of nodes

    def _node_reported(self, node: str, report: TaskReport | None, now: float) -> list[Action]:
        if node not in self.plan.nodes:
            return []
        if self._trained:
            return self._reported_after_training(node, report, now)
        if report is None:  # the node does not know the task (any more); what it still has is not sent again
            again = [*self._extensions.request(node), *self._models.node_tests.repeat(node)]
            return [events.Assign(node), *self._send_globals([node]), *again]
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
        elif state == "ready" and self._participants.rejoin(node) and self._delivery.started:
            return self._delivery.add(node, self.committed)
        elif state == "closing" or (state is None and self.plan.resumes is None):
            # It has the final model; or it ended the task with it, or lost everything: there is nothing to wait for. A
            # node that does not know a run that continues another may not have begun with it yet.
            self._delivery.settle(node)
        return self._node_tests_completed(now) + self._advance(now)

    def _exclude_from_delivery(self, node: str, why: str) -> None:
        self._participants.absent[node] = why
        self._delivery.settle(node)
        self._models.node_tests.node_left(node)
        self._extensions.node_left(node)

    def _node_failed(self, node: str, why: str, now: float) -> list[Action]:
        """During the training a node fails: its clients are missing from now on."""
        if not self._participants.leave(node, why):
            return []
        if self._collector is not None and not self._collector.closed:
            self._collector.exclude(node)
        self._extensions.node_left(node)
        self._models.node_tests.node_left(node)
        record = RecordEvent("node_failed", f"node {node} {why}; the task goes on without its clients")
        tested = self._node_tests_completed(now)
        return [record, *tested, *self._close_if_enough(now), *self._continue_extension(now)]

    def _node_ready(self, node: str, report: TaskReport, now: float) -> list[Action]:
        known = self.counts
        problem = self._participants.add_ready(node, report)
        if problem is not None:
            return self._finish("failed", problem)
        if known is not None:
            return self._node_recovered(node) or self._repeat_global(node, report)
        if self.counts is None:
            return []
        notes = [RecordEvent("node_weight", note) for note in self._participants.heavy]
        return [events.RecordCounts(self.counts), *notes, *self._advance(now)]

    def _node_recovered(self, node: str) -> list[Action]:
        if not self._participants.rejoin(node):
            return []
        if self._collector is not None and not self._collector.closed:
            self._collector.include(node)
        return [RecordEvent("node_back", f"node {node} takes part again"), *self._send_globals([node])]

    def _repeat_global(self, node: str, report: TaskReport) -> list[Action]:
        """A node that is in another round has lost the round's model, or this host was set back: send it again."""
        collector = self._collector
        if collector is None or report.round == collector.number or node not in collector.waiting_for:
            return []
        return self._send_globals([node])

    def _node_refused(self, node: str, reason: str, now: float) -> list[Action]:
        if not self._trained:
            return self._finish("failed", f"node {node} refused {reason}")
        self._exclude_from_delivery(node, f"refused {reason}")
        return self._node_tests_completed(now) + self._advance(now)

    # ------------------------------------------------------------ the test set and the models

    def _commit(self, number: int, now: float, missing_share: float = 0.0, used: Sequence[Update] = ()) -> list[Action]:
        """Commit a round, which has used these updates."""
        self.committed = number
        self._models.kept.add(number)
        if self._trained:
            self._move(TaskPhase.CLOSING)
        elif self._undecided:
            self._move(TaskPhase.EVALUATING)
        clear: list[Action] = [events.ClearUpdates(number)] if number > 0 else []
        if self._buffer is not None:
            clear = self._buffer.clear(number, used)
        follow = [*self._models.process(number), *self._order_tests(now)]
        keys = () if self._buffer is None else self._buffer.used
        commit = events.Commit(number, self._losses, self._course.totals, missing_share, keys)
        return [commit, *clear, *follow, *self._advance(now), *self._models.clear(number)]

    def _advance(self, now: float) -> list[Action]:
        """Open the next round, or approach the end, as soon as everything that it needs is available."""
        if not self.settings.trains:
            return self._gather_statistics(now)
        if self.ended or self._collector is not None or self.committed < 0:
            return []
        if self._trained:
            return self._approach_end(now)
        if self.counts is None or not self._models.testable or self._undecided:
            return []
        actions: list[Action] = []
        if self.committed == 0:
            actions, complete = self._extend(Position.BEFORE_TRAINING, now)
            if not complete:
                return actions
            actions += [*self._models.scale_known(), *self._order_tests(now)]
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
            actions += self._delivery.start(self._participants.present, last, self._other_than(last), now)
        if not self._delivery.finished(now):
            return actions
        of_all = f"{last} of {self.settings.num_rounds} rounds done: {self._ending}"
        done = of_all if self._ending else f"{last} rounds done"
        if (released := self._other_than(last)) is not None:
            done += f"; the final model is that of round {released}, the best by {self.settings.keep_best}"
        return actions + self._finish("completed", self._delivery.outcome(done, self._participants.absent))

    def _other_than(self, last: int) -> int | None:
        """The round whose model is released instead of the last one's; None if it is the last."""
        return None if self.released == last else self.released

    def _finish(self, outcome: str, reason: str) -> list[Action]:
        self._move(TaskPhase.ENDED)
        if outcome == "completed":
            released, warning = self._other_than(self.committed), self._course.warning
            return [Finish(outcome, reason, self.without_final, self.undelivered, released, warning)]
        if outcome == "failed" and self.committed == self.plan.continued_after:  # it is as complete as it was before
            why, released = not_continued(self.committed, reason), self._other_than(self.committed)
            return [Finish("completed", why, self.plan.nodes, (), released, self._course.warning)]
        return [Finish(outcome, reason, self.plan.nodes)]

    # ------------------------------------------------------------ extension phases and time

    def _extend(self, position: Position, now: float) -> tuple[list[Action], bool]:
        """Run the extension phases of a position; returns their actions, and whether all are complete."""
        return self._extensions.run(position, self.round, self._participants.present, now)

    def _continue_extension(self, now: float) -> list[Action]:
        """Continue after an extension phase that may now be complete."""
        if self.ended or self._extensions.current is None:
            return []
        return self._aggregate(now) if self.phase is TaskPhase.AGGREGATING else self._advance(now)

    def _time_passed(self, now: float) -> list[Action]:
        problem = self._extensions.expire(now)
        if problem is not None:
            return self._finish("failed", problem)
        if self._is_preparing and self._prepare_until is not None and now >= self._prepare_until:
            return self._postpone()
        tested = self._node_tests_completed(now)
        return tested + self._continue_extension(now) + self._close_if_enough(now) + self._advance(now)

    def _postpone(self) -> list[Action]:
        """Nodes have missed the deadline of the preparation: the task gives its place to others."""
        what = "is not ready" if self.counts is None else "has not sent its test set"
        why = f"{what} {self.plan.prepare_timeout_seconds:g} s after the start"
        nodes = tuple((node, why) for node in self.waiting_for)
        self._move(TaskPhase.ENDED)
        return [events.Postpone(nodes)]

    # ------------------------------------------------------------ the round

    def _open(self, number: int, now: float, cohort: tuple[int, ...] = ()) -> RoundCollector:
        assert self.counts is not None  # noqa: S101 - no round opens without them
        deadline = now + self.settings.round_timeout_seconds - self._waited
        self._waited = 0.0
        if self._sampler.knows_more and not cohort:
            cohort = self.plan.cohort(number, Known(self.counts, self._losses))
        absent = self._participants.absent
        if self._buffer is not None:
            self._collector = BufferedRound(self.plan, number, self.counts, deadline, absent, self._buffer)
        else:
            self._collector = RoundCollector(self.plan, number, self.counts, deadline, absent, cohort)
        return self._collector

    def _send_globals(self, nodes: Iterable[str]) -> list[Action]:
        """The round's model to those of `nodes` that train in it."""
        collector = self._collector
        if collector is None or collector.closed:
            return []
        return [action for node in nodes if (action := collector.broadcast(node)) is not None]

    def _update_arrived(self, update: Update, now: float) -> list[Action]:
        collector = self._collector
        if self._buffer is not None and not self._trained:
            return self._buffer.arrived(update, self.committed + 1) or self._close_if_enough(now)
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
            who = "; ".join(f"node {node} {why}" for node, why in sorted(self._participants.absent.items()))
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
        if self._sampler.needs_losses and self._roster is not None:
            updates = self._collector.with_clients(self._roster.updates)
            self._losses = last_losses(self._losses, updates, self.settings.num_clients)
        missing, expected = self._collector.lost(() if self._roster is None else self._roster.missing)
        self._course.add_round(missing, expected, now)
        used = () if self._roster is None else self._roster.updates
        if self._buffer is not None:
            self._buffer.commit()
        self._collector = self._roster = None
        return self._commit(number, now, missing / expected if expected else 0.0, used)
