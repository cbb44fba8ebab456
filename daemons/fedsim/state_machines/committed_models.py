"""The models of committed rounds: which of them are tested and saved, and how long each stays on disk."""

from __future__ import annotations

from collections.abc import Iterable

from fedsim.settings import TaskSettings
from fedsim.state_machines.task_events import Action, ClearModel, EvaluateRound, Save


class CommittedModels:
    """The rounds whose folders are still there (`kept`), and which of them were evaluated and saved."""

    def __init__(
        self, settings: TaskSettings, kept: Iterable[int], evaluated: Iterable[int], saved: Iterable[int]
    ) -> None:
        self.kept = set(kept)
        self.evaluated = set(evaluated)
        self.saved = set(saved)
        self._settings = settings

    def evaluation_due(self, number: int) -> bool:
        """Whether the round is one of those that are tested."""
        return number % self._settings.evaluate_every == 0 or number == self._settings.num_rounds

    def save_due(self, number: int) -> bool:
        """Whether the round is one of those that are saved as a checkpoint."""
        return number > 0 and (number % self._settings.save_every == 0 or number == self._settings.num_rounds)

    def process(self, number: int, *, testset: bool) -> list[Action]:
        """Test the round's model, and save it, as far as that is due and possible; the next round waits for neither."""
        return [*self.evaluate([number], testset=testset), *self._save(number)]

    def evaluate(self, numbers: Iterable[int], *, testset: bool) -> list[Action]:
        """Test the models of these rounds that are still to be tested."""
        return [EvaluateRound(number) for number in numbers if testset and self._awaits_evaluation(number)]

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

    def _save(self, number: int) -> list[Action]:
        return [Save(number)] if self._awaits_save(number) and not self._awaits_evaluation(number) else []

    def _awaits_evaluation(self, number: int) -> bool:
        return self.evaluation_due(number) and number not in self.evaluated

    def _awaits_save(self, number: int) -> bool:
        return self.save_due(number) and number not in self.saved
