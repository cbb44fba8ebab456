"""The models of committed rounds: which are tested and saved, which is the best, how long each stays on disk."""

from __future__ import annotations

from collections.abc import Collection

from fedsim.settings import TaskSettings
from fedsim.state_machines.node_tests import NodeTests
from fedsim.state_machines.task_events import (
    Action,
    ClearModel,
    EvaluateRound,
    KeepBest,
    RemoveCheckpoint,
    Restored,
    Save,
)

_TESTSET_PARTS = frozenset({"data", "label"})


class CommittedModels:
    """The rounds whose folders are still there (`kept`), and which of them were evaluated and saved.

    They are evaluated on the test set, of which `testset_parts` have arrived; all if the server has its own, or if only
    nodes test (see `NodeTests`). None is evaluated before it is known how the test set is `scaled`.

    The `best` round so far is saved as well. A better one takes its place: its checkpoint is removed as soon as the
    better one is saved, unless it is due anyway or of a round up to `continued_after`.
    """

    def __init__(
        self,
        settings: TaskSettings,
        restored: Restored,
        *,
        own_testset: bool,
        scaled: bool = True,
        best: int | None = None,
        continued_after: int = 0,
    ) -> None:
        self.kept = set(restored.kept)
        self.evaluated = set(restored.evaluated)
        self.node_tests = NodeTests(
            restored.node_tested, settings.round_timeout_seconds, active=settings.evaluation != "server"
        )
        self.saved = set(restored.saved)
        self._at_server = settings.evaluation != "nodes"
        if not self._at_server:
            self.evaluated |= self.node_tests.done
        none_needed = own_testset or not self._at_server
        self.testset_parts = set(_TESTSET_PARTS if none_needed else restored.testset_parts)
        self.best = best
        self.last = settings.num_rounds
        self._saving: set[int] = set()
        self._surpassed: set[int] = set()
        self._scaled = scaled
        self._settings = settings
        self._continued_after = continued_after

    @property
    def testable(self) -> bool:
        """Whether the test set is complete."""
        return self.testset_parts >= _TESTSET_PARTS

    def add_testset_part(self, part: str) -> list[Action]:
        """A part of the test set has arrived: with the last one the models that wait for it are tested."""
        self.testset_parts.add(part)
        return [action for number in sorted(self.kept) for action in self._evaluate(number)]

    def scale_known(self) -> list[Action]:
        """The common scaling is known: the models that wait for it are tested."""
        if self._scaled:
            return []
        self._scaled = True
        return [action for number in sorted(self.kept) for action in self._evaluate(number)]

    def evaluation_due(self, number: int) -> bool:
        """Whether the round is one of those that are tested."""
        return self._settings.tests_round(number)

    def save_due(self, number: int) -> bool:
        """Whether the round is one of those that are saved as a checkpoint."""
        return number > 0 and (number % self._settings.save_every == 0 or number == self.last)

    def process(self, number: int) -> list[Action]:
        """Test the round's model, and save it, as far as that is due and possible; the next round waits for neither."""
        return [*self._evaluate(number), *self._save(number)]

    def was_evaluated(self, number: int, best: int | None) -> list[Action]:
        """Note that the server tested a round, and which is the best now; a checkpoint was waiting for the metrics."""
        if number in self.evaluated:
            return []
        self.evaluated.add(number)
        return self._follow(number, best)

    def nodes_tested(self, number: int, best: int | None) -> list[Action]:
        """Note that the nodes' tests of a round are recorded, and which is the best now."""
        if not self._at_server:
            self.evaluated.add(number)
        return self._follow(number, best)

    def order_tests(self, nodes: Collection[str], now: float) -> list[Action]:
        """Have the nodes test the models that are due."""
        due = [number for number in sorted(self.kept) if self.evaluation_due(number)]
        return self.node_tests.order(due, nodes, now) if self._scaled else []

    def _follow(self, number: int, best: int | None) -> list[Action]:
        keep: list[Action] = []
        if best is not None and best != self.best:
            if self.best is not None:
                self._surpassed.add(self.best)
            self.best = best
            keep.append(KeepBest(best))
        return [*keep, *self._save(number)]

    def was_saved(self, number: int) -> list[Action]:
        """Note that a checkpoint is stored; with a better one, those that it has surpassed are removed."""
        self.saved.add(number)
        self._saving.discard(number)
        if self.best is None or self.best not in self.saved:
            return []
        gone = sorted(self._surpassed & self.saved)
        self._surpassed.difference_update(gone)
        removed = [old for old in gone if old > self._continued_after and not self.save_due(old)]
        self.saved.difference_update(removed)
        return [RemoveCheckpoint(old, self.best) for old in removed]

    def clear(self, committed: int) -> list[Action]:
        """Remove each model that is evaluated and saved as far as due, once the next round is committed."""
        needed = {committed, self.released(committed), *self._saving}
        used = [
            number
            for number in sorted(self.kept)
            if number not in needed and not self.awaits_evaluation(number) and not self._awaits_save(number)
        ]
        self.kept.difference_update(used)
        return [ClearModel(number) for number in used]

    def released(self, last: int) -> int:
        """The round whose model is the final one of a task that ends with the round `last`."""
        best = self.best
        return best if self._settings.final_model == "best" and best is not None and best in self.kept else last

    def only_finished(self, last: int) -> bool:
        """Whether the last round's model, and what is released, are all that is left, evaluated and saved."""
        left = {last, self.released(last)}
        return not self.awaits_evaluation(last) and left <= self.saved and not self.kept - left and not self._saving

    def awaits_evaluation(self, number: int) -> bool:
        """Whether the round is to be evaluated and was not yet, by the server or by the nodes."""
        tested = number in self.evaluated and (not self.node_tests.active or number in self.node_tests.done)
        return self.evaluation_due(number) and not tested

    def _evaluate(self, number: int) -> list[Action]:
        due = self._at_server and self.evaluation_due(number) and number not in self.evaluated
        return [EvaluateRound(number)] if self.testable and self._scaled and due else []

    def _save(self, number: int) -> list[Action]:
        if number in self._saving or not self._awaits_save(number) or self.awaits_evaluation(number):
            return []
        self._saving.add(number)
        return [Save(number)]

    def _awaits_save(self, number: int) -> bool:
        return (self.save_due(number) or number == self.best) and number not in self.saved
