"""The course of one task on the server: a table of (event -> actions) with nothing else in it.

The shell (`fedsim.server.task`) turns what happens into events, carries out the actions in order, and on a restart
hands over what it finds on disk (`Restored`); then the course goes on as if nothing had happened.

    preparing --all nodes ready, initial model, test set--> round 1
    round r   --all came, or deadline and enough--> roster r --aggregated--> commit r --> round r + 1 ... --> closing
    closing   --last evaluation and checkpoint recorded--> final model to the nodes --delivered or deadline--> completed

A node that is away at the deadline gets the final model later: the shell keeps it for those in `undelivered`. A node
that fails in the middle is out until it reports that it is ready again: rounds go on without it as far as
`min_responses` allows. That hangs on its newest report alone, so a restarted server comes to the same. Once the last
round is committed, no trouble of a node fails the task any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedsim.messages import TaskReport
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.round import RoundCollector
from fedsim.state_machines.task_events import (
    Action,
    Aggregate,
    Aggregated,
    Assign,
    Broken,
    ClearModel,
    ClearUpdates,
    Commit,
    Discard,
    Evaluate,
    Evaluated,
    Event,
    FinalDelivered,
    Finish,
    InitialModelMade,
    MakeInitialModel,
    NodeRefused,
    NodeReported,
    Note,
    RecordCounts,
    Save,
    Saved,
    SendFinal,
    StopRequested,
    TestsetArrived,
    TimePassed,
    UpdateArrived,
    WriteRoster,
)
from fedsim.update import Update

# The end waits so long for the final model to arrive; whoever has it not by then gets it afterwards.
FINAL_DELIVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Restored:
    """What a shell found on disk when it took a task up again; empty for a new one.

    `committed` is the newest committed round (-1: none), `roster` the written one of the round after it, `kept` the
    committed rounds whose folders are still there, `evaluated` and `saved` those among them that need nothing more.
    """

    committed: int = -1
    counts: tuple[int, ...] | None = None
    roster: WriteRoster | None = None
    kept: frozenset[int] = frozenset()
    evaluated: frozenset[int] = frozenset()
    saved: frozenset[int] = frozenset()
    testset: bool = False


class TaskMachine:
    """One task from its plan to its end. `begin` once, then `handle` for every event; both return actions in order."""

    def __init__(self, plan: Plan, restored: Restored, own_testset: bool) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.committed = restored.committed
        self.counts = restored.counts
        self.ended = False
        self._testset = own_testset or restored.testset
        self._restored_roster = restored.roster
        self._kept = set(restored.kept)
        self._evaluated = set(restored.evaluated)
        self._saved = set(restored.saved)
        self._ready: dict[str, tuple[int, ...]] = {}
        self._gathering: RoundCollector | None = None
        self._undelivered: set[str] | None = None
        self._out: dict[str, str] = {}  # nodes that take no part now: why
        self._final_deadline: float | None = None

    # ------------------------------------------------------------ what a person sees

    @property
    def phase(self) -> str:
        """preparing, training, aggregating or closing."""
        if self._gathering is not None:
            return "aggregating" if self._gathering.closed else "training"
        return "closing" if self._trained else "preparing"

    @property
    def round(self) -> int:
        """The round that is under way; the last committed one while none is."""
        return self._gathering.number if self._gathering else max(self.committed, 0)

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The nodes that have not answered yet."""
        if self._gathering is not None and not self._gathering.closed:
            return self._gathering.waiting_for
        if self._undelivered:
            return self.undelivered
        if self.counts is None:
            return tuple(node for node in self.plan.nodes if node not in self._ready)
        if not self._testset and self.plan.testset_from is not None:
            return (self.plan.testset_from,)
        return ()

    @property
    def undelivered(self) -> tuple[str, ...]:
        """The nodes that the final model is on its way to."""
        return tuple(sorted(self._undelivered or ()))

    @property
    def without_final(self) -> tuple[str, ...]:
        """The nodes that will not take the final model."""
        return tuple(sorted(self._out))

    @property
    def wake_at(self) -> float | None:
        """When `TimePassed` is due; None if no time matters."""
        if self._gathering is not None and not self._gathering.closed:
            # Past its deadline only an answer can end the round, no further passing of time.
            return None if self._gathering.overdue else self._gathering.deadline
        return self._final_deadline

    # ------------------------------------------------------------ events in, actions out

    def begin(self, now: float) -> list[Action]:
        """The first actions, of a new task as of one that is taken up again."""
        actions: list[Action] = []
        if not self._trained:  # after that a node that ended would only begin again
            actions += [Assign(node) for node in self.plan.nodes]
        if self.committed < 0:
            actions.append(MakeInitialModel())
        for number in sorted(self._kept):
            actions += self._after_commit(number)
        actions += self._clear_models()
        if self._restored_roster is not None:
            roster = self._restored_roster
            self._open(roster.round, now).closed = True
            actions.append(Aggregate(roster.round, roster.updates))
        else:
            actions += self._go_on(now)
        return actions

    def handle(self, event: Event, now: float) -> list[Action]:
        """What `event` asks for. After `Finish` nothing more comes."""
        if self.ended:
            return []
        match event:
            case NodeReported(node, report):
                return self._node_reported(node, report, now)
            case InitialModelMade():
                return self._commit(0, now) if self.committed < 0 else []
            case TestsetArrived():
                if self._testset:
                    return []
                self._testset = True
                due = [action for number in sorted(self._kept) for action in self._evaluation(number)]
                return due + self._go_on(now)
            case UpdateArrived(update):
                return self._update_arrived(update, now)
            case Aggregated(number, finite):
                return self._aggregated(number, now, finite=finite)
            case Evaluated(number):
                self._evaluated.add(number)
                return self._clear_models() + self._go_on(now)
            case Saved(number):
                self._saved.add(number)
                return self._clear_models() + self._go_on(now)
            case FinalDelivered(node):
                self._not_waited_for(node)
                return self._go_on(now)
            case NodeRefused(node, reason):
                return self._node_refused(node, reason, now)
            case TimePassed():
                return self._close_if_enough(now) + self._go_on(now)
            case StopRequested(reason):
                return self._finish("stopped", reason)
            case Broken(reason):
                return self._finish("failed", reason)

    # ------------------------------------------------------------ the rows of the table

    @property
    def _trained(self) -> bool:
        """Whether the last round is committed: whatever a node can do no more, the training is done."""
        return self.committed >= self.settings.num_rounds

    def _node_reported(self, node: str, report: TaskReport | None, now: float) -> list[Action]:
        if node not in self.plan.nodes:
            return []
        if self._trained:
            return self._reported_at_the_end(node, report, now)
        if report is None:  # the node does not know the task (any more): what it still has costs nothing to offer
            return [Assign(node), *self._send_globals([node])]
        match report.state:
            case "failed" if self.counts is not None and self.settings.min_responses < 1:
                return self._node_out(node, f"failed: {report.reason}", now)
            case "refused" | "failed":
                return self._finish("failed", f"node {node} {report.state}: {report.reason}")
            case "diverged":
                return self._finish("failed", f"diverged in round {report.round}: {report.reason}")
            case "ready":
                return self._node_ready(node, report, now)
        return []

    def _reported_at_the_end(self, node: str, report: TaskReport | None, now: float) -> list[Action]:
        state = None if report is None else report.state
        if report is not None and state in {"refused", "failed", "diverged"}:
            self._will_not_take_it(node, f"{state}: {report.reason}")
        elif state == "ready" and self._out.pop(node, None) is not None and self._undelivered is not None:
            self._undelivered.add(node)
            return [SendFinal(node, self.committed)]
        elif state in {"closing", None}:
            # It has the final model; or it ended the task with it, or lost everything: nobody to wait for.
            self._not_waited_for(node)
        return self._go_on(now)

    def _will_not_take_it(self, node: str, why: str) -> None:
        self._out[node] = why
        self._not_waited_for(node)

    def _not_waited_for(self, node: str) -> None:
        """The final model needs no further way to the node."""
        if self._undelivered is not None:
            self._undelivered.discard(node)

    def _node_out(self, node: str, why: str, now: float) -> list[Action]:
        """In the middle of the training a node can do no more: its clients are missing from now on."""
        if node in self._out:
            return []
        self._out[node] = why
        if self._gathering is not None:
            self._gathering.leave_out(node)
        note = Note("node_failed", f"node {node} {why}; the task goes on without its clients")
        return [note, *self._close_if_enough(now)]

    def _node_ready(self, node: str, report: TaskReport, now: float) -> list[Action]:
        share = next(share for share in self.plan.shares if share.node == node)
        if sum(clients for clients, _ in report.num_examples) != share.num_clients:
            return self._finish("failed", f"node {node} reported examples of other clients than its own")
        counts = tuple(count for clients, count in report.num_examples for _ in range(clients))
        if self.counts is not None:
            fixed = self.counts[share.first_client : share.first_client + share.num_clients]
            if counts != fixed:
                return self._finish("failed", f"node {node}'s data changed during the task: start it again")
            return self._node_back(node)
        self._ready[node] = counts
        if len(self._ready) < len(self.plan.nodes):
            return []
        self.counts = tuple(count for name in self.plan.nodes for count in self._ready[name])
        return [RecordCounts(self.counts), *self._go_on(now)]

    def _node_back(self, node: str) -> list[Action]:
        if self._out.pop(node, None) is None:
            return []
        if self._gathering is not None:
            self._gathering.take_back(node)
        return [Note("node_back", f"node {node} takes part again"), *self._send_globals([node])]

    def _node_refused(self, node: str, reason: str, now: float) -> list[Action]:
        if not self._trained:
            return self._finish("failed", f"node {node} refused {reason}")
        self._will_not_take_it(node, f"refused {reason}")
        return self._go_on(now)

    def _update_arrived(self, update: Update, now: float) -> list[Action]:
        gathering = self._gathering
        if gathering is None or gathering.closed or not gathering.awaits(update):
            # A round to come is impossible for an honest node; the current one's file may be part of its roster.
            in_roster = gathering is not None and gathering.closed and update.base_round == gathering.number
            return [] if in_roster else [Discard(update)]
        return self._close_if_enough(now) if gathering.take(update) else []

    def _aggregated(self, number: int, now: float, *, finite: bool) -> list[Action]:
        if number != self.committed + 1 or self._gathering is None:
            return []
        if not finite:
            reason = f"diverged in round {number}: the model is no longer finite; try a smaller learning rate"
            return self._finish("failed", reason)
        self._gathering = None
        return self._commit(number, now)

    def _commit(self, number: int, now: float) -> list[Action]:
        self.committed = number
        self._kept.add(number)
        actions: list[Action] = [Commit(number)]
        if number > 0:
            actions.append(ClearUpdates(number))
        return actions + self._after_commit(number) + self._go_on(now) + self._clear_models()

    def _after_commit(self, number: int) -> list[Action]:
        actions = self._evaluation(number)
        if self._save_due(number) and number not in self._saved:
            actions.append(Save(number))
        return actions

    def _evaluation(self, number: int) -> list[Action]:
        """Test the round's model if that is due and can be done already; the next round does not wait for it."""
        due = self._testset and self.evaluation_due(number) and number not in self._evaluated
        return [Evaluate(number)] if due else []

    def _go_on(self, now: float) -> list[Action]:
        """Open the next round, or go towards the end, if nothing stands in the way."""
        if self.ended or self._gathering is not None or self.committed < 0:
            return []
        if not self._trained:
            if self.counts is None or not self._testset:
                return []
            self._open(self.committed + 1, now)
            return self._close_if_enough(now) or self._send_globals(self.plan.nodes)
        last = self.committed
        if last not in self._evaluated or last not in self._saved or self._kept - {last}:
            return []
        if self._undelivered is None:
            takers = [node for node in self.plan.nodes if node not in self._out]
            self._undelivered = set(takers)
            self._final_deadline = now + FINAL_DELIVERY_SECONDS
            if takers:
                return [SendFinal(node, last) for node in takers]
        if self._undelivered and self._final_deadline is not None and now < self._final_deadline:
            return []
        reason = f"{last} rounds done"
        if self._undelivered:
            reason += f"; the final model still goes to {', '.join(self.undelivered)}"
        if self._out:
            without = ", ".join(f"{node} ({why})" for node, why in sorted(self._out.items()))
            reason += f"; without the final model: {without}"
        return self._finish("completed", reason)

    def _finish(self, outcome: str, reason: str) -> list[Action]:
        self.ended = True
        return [Finish(outcome, reason)]

    # ------------------------------------------------------------ the round

    def _open(self, number: int, now: float) -> RoundCollector:
        assert self.counts is not None  # noqa: S101 - no round opens without them
        deadline = now + self.settings.round_timeout_seconds
        self._gathering = RoundCollector(self.plan, number, self.counts, deadline, self._out)
        return self._gathering

    def _send_globals(self, nodes: Iterable[str]) -> list[Action]:
        """The round's model to those of `nodes` that train in it."""
        gathering = self._gathering
        if gathering is None or gathering.closed:
            return []
        return [action for node in nodes if (action := gathering.broadcast(node)) is not None]

    def _close_if_enough(self, now: float) -> list[Action]:
        """Everything that is awaited, or after the deadline enough of it, ends the round."""
        gathering = self._gathering
        if gathering is None or gathering.closed:
            return []
        if gathering.hopeless:
            who = "; ".join(f"node {node} {why}" for node, why in sorted(self._out.items()))
            return self._finish("failed", f"{who}; too few clients are left for round {gathering.number}")
        if not (gathering.complete or gathering.enough(now)):
            return []
        roster = gathering.close()
        return [roster, Aggregate(roster.round, roster.updates)]

    # ------------------------------------------------------------ what stays, and how long

    def evaluation_due(self, number: int) -> bool:
        """Whether the round is one of those that are tested."""
        return number % self.settings.evaluate_every == 0 or number == self.settings.num_rounds

    def _save_due(self, number: int) -> bool:
        return number > 0 and (number % self.settings.save_every == 0 or number == self.settings.num_rounds)

    def _clear_models(self) -> list[Action]:
        """A round's model stays until it is evaluated and saved as far as due, and the next round is committed."""
        actions: list[Action] = []
        for number in sorted(self._kept):
            needed = number == self.committed
            needed |= self.evaluation_due(number) and number not in self._evaluated
            needed |= self._save_due(number) and number not in self._saved
            if not needed:
                self._kept.discard(number)
                actions.append(ClearModel(number))
        return actions
