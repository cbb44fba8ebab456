"""The models of committed rounds: which of them are tested and saved, and how long each stays on disk."""

from __future__ import annotations

from fedsim.settings import TaskSettings
from fedsim.state_machines.task_events import Action, ClearModel, EvaluateRound, Restored, Save

_TESTSET_PARTS = frozenset({"data", "label"})


class CommittedModels:
    """The rounds whose folders are still there (`kept`), and which of them were evaluated and saved.

    They are evaluated on the test set, of which `testset_parts` have arrived; all if the server has its own. None is
    evaluated before it is known how the test set is `scaled`.
    """

    def __init__(self, settings: TaskSettings, restored: Restored, *, own_testset: bool, scaled: bool = True) -> None:
        self.kept = set(restored.kept)
        self.evaluated = set(restored.evaluated)
        self.saved = set(restored.saved)
        self.testset_parts = set(_TESTSET_PARTS if own_testset else restored.testset_parts)
        self._scaled = scaled
        self._settings = settings

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
        return number % self._settings.evaluate_every == 0 or number == self._settings.num_rounds

    def save_due(self, number: int) -> bool:
        """Whether the round is one of those that are saved as a checkpoint."""
        return number > 0 and (number % self._settings.save_every == 0 or number == self._settings.num_rounds)

    def process(self, number: int) -> list[Action]:
        """Test the round's model, and save it, as far as that is due and possible; the next round waits for neither."""
        return [*self._evaluate(number), *self._save(number)]

    def was_evaluated(self, number: int) -> list[Action]:
        """Note a round's evaluation; its checkpoint, which contains the metrics, was waiting for it."""
        if number in self.evaluated:
            return []
        self.evaluated.add(number)
        return self._save(number)

    def clear(self, committed: int) -> list[Action]:
        """Remove each model that is evaluated and saved as far as due, once the next round is committed."""
        used = [
            number
            for number in sorted(self.kept)
            if number != committed and not self._awaits_evaluation(number) and not self._awaits_save(number)
        ]
        self.kept.difference_update(used)
        return [ClearModel(number) for number in used]

    def only_finished(self, last: int) -> bool:
        """Whether the last round's model is all that is left, evaluated and saved."""
        return last in self.evaluated and last in self.saved and not self.kept - {last}

    def _evaluate(self, number: int) -> list[Action]:
        return [EvaluateRound(number)] if self.testable and self._scaled and self._awaits_evaluation(number) else []

    def _save(self, number: int) -> list[Action]:
        return [Save(number)] if self._awaits_save(number) and not self._awaits_evaluation(number) else []

    def _awaits_evaluation(self, number: int) -> bool:
        return self.evaluation_due(number) and number not in self.evaluated

    def _awaits_save(self, number: int) -> bool:
        return self.save_due(number) and number not in self.saved
