"""Checks of attacks."""

from __future__ import annotations

import numpy as np

from fedsim import plugins
from fedsim.learning.attacks import Attack, AttackContext, Differences
from fedsim.learning.examples import FloatArray, IntArray
from fedsim.learning.randomness import generator
from fedsim.testing.conformance.candidate import NUM_CLASSES, Candidate, require, require_reproducible_task, small_data

CONTEXT = AttackContext(seed=3, round=2, clients=(1, 4, 6), n=20, m=3)
SIZE = 40


def _honest() -> Differences:
    honest = generator(1, "conformance").normal(size=(len(CONTEXT.clients), SIZE))
    honest.flags.writeable = False
    return honest


def _examples() -> tuple[FloatArray, IntArray]:
    train = small_data().train
    labels = train.labels.copy()
    labels.flags.writeable = False
    return train.take(slice(None)), labels


def _poisoned(candidate: Candidate) -> tuple[FloatArray, IntArray]:
    attack: Attack = candidate.make()
    return attack.poison(*_examples(), NUM_CLASSES, generator(7, "conformance"))


def changes_what_attackers_train_on_or_send(candidate: Candidate) -> None:
    """It overrides `poison` or `craft`, and what that returns differs from honest work."""
    attack: Attack = candidate.make()
    require(attack.poisons or attack.crafts, "it overrides neither `poison` nor `craft`")
    (features, labels), (found, other) = _examples(), _poisoned(candidate)
    poisoned = not (np.array_equal(features, found) and np.array_equal(labels, other))
    crafted = not np.array_equal(np.broadcast_to(attack.craft(_honest(), CONTEXT), _honest().shape), _honest())
    require(poisoned or crafted, "attackers train on their own examples and send what they have trained")


def crafts_a_difference_of_each_attacker(candidate: Candidate) -> None:
    """What attackers send is float64, finite, one row for each of them or one for all; the input is only read."""
    attack: Attack = candidate.make()
    for rows in (1, len(CONTEXT.clients)):
        context = AttackContext(3, 2, CONTEXT.clients[:rows], 20, 3)
        crafted = attack.craft(_honest()[:rows], context)
        require(crafted.dtype == np.float64, f"what is sent is {crafted.dtype}, not float64")
        wanted = ((SIZE,), (rows, SIZE))
        require(crafted.shape in wanted, f"what {rows} attackers send has the shape {crafted.shape}, not {wanted[1]}")
        require(np.isfinite(crafted).all(), "what is sent is not finite")


def poisons_with_labels_of_the_task(candidate: Candidate) -> None:
    """Examples keep their number, shape and types, and labels are classes of the task; given labels are only read."""
    (features, labels), (found, other) = _examples(), _poisoned(candidate)
    require(found.shape == features.shape and found.dtype == np.float32, "the features changed their shape or type")
    require(other.shape == labels.shape and other.dtype == np.int64, "the labels changed their shape or type")
    require(bool(((other >= 0) & (other < NUM_CLASSES)).all()), f"there are labels outside of 0 … {NUM_CLASSES - 1}")


def attacks_as_a_pure_function(candidate: Candidate) -> None:
    """Equal arguments give equal attacks, whatever was attacked before."""
    attack: Attack = candidate.make()
    one, two = attack.craft(_honest(), CONTEXT), attack.craft(_honest(), CONTEXT)
    require(np.array_equal(one, two), "the same updates gave two different attacks")
    (features, labels), (found, other) = _poisoned(candidate), _poisoned(candidate)
    require(np.array_equal(features, found) and np.array_equal(labels, other), "the same examples were changed twice")


def attacked_tasks_train_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    require_reproducible_task(candidate, plugins.ATTACKS, "attack")


CHECKS = (
    changes_what_attackers_train_on_or_send,
    crafts_a_difference_of_each_attacker,
    poisons_with_labels_of_the_task,
    attacks_as_a_pure_function,
    attacked_tasks_train_reproducibly,
)
