"""What is stored of a task on the server, in the form in which its state machine knows it."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.learning.samplers import Losses
from fedsim.update import Update


@dataclass(frozen=True)
class WriteRoster:
    """Durably write which updates count in `round`, in the order in which they are summed, before anything is.

    That is the canonical order, or in an asynchronous round the order of their arrival. It says who is `missing`, too.

    `cohort` is written as well where it does not follow from the plan alone.

    How many examples are behind an update is what the nodes reported before round 1, not what came with the update.
    """

    round: int
    updates: tuple[Update, ...]
    missing: tuple[int, ...]
    cohort: tuple[int, ...] = ()


@dataclass(frozen=True)
class CompletePhase:
    """Durably record that an extension phase is complete, with its answers as (node, JSON); it is not repeated."""

    phase: str
    round: int
    answers: tuple[tuple[str, str], ...] = ()


UsedKey = tuple[int, int, int]
"""An update that an asynchronous round used: the round in which it began, its chunk, its client (-1: all of them)."""

MetricPairs = tuple[tuple[str, float | None], ...]
"""The metrics of a test by name, as pairs."""


@dataclass(frozen=True)
class Totals:
    """What has added up over a task when a round is committed.

    Attributes:
        seconds: for which the task has run.
        missing: examples of the clients that were missing, over all rounds.
        expected: examples of the clients that were chosen, over all rounds.
    """

    seconds: float = 0.0
    missing: int = 0
    expected: int = 0


NO_TOTALS = Totals()


@dataclass(frozen=True)
class Restored:
    """What was stored of a task when it was resumed; empty for a new one.

    Attributes:
        committed: the newest committed round; -1: none.
        counts: examples of each client, once they are fixed.
        roster: of the round after the committed one, if it was written.
        kept: the committed rounds whose folders are still there.
        evaluated: those of them that are evaluated, as far as that is due.
        saved: those of them that are saved, as far as that is due.
        testset_parts: the files of the test set that have arrived.
        completed_phases: the extension phases that are complete, with their answers.
        waited: for how long the round after the committed one was open, in seconds, while the server ran.
        absent: (node, why) of the nodes that take no part for now; only a snapshot knows them.
        losses: that clients had reported up to the committed round, where the sampler needs them.
        tests: the tested rounds up to the committed one, with those of their metrics that decide something.
        totals: up to the committed round.
        node_tested: the rounds of which the nodes' tests are recorded.
        used: what asynchronous rounds used, as far as it could come again.
        buffered: updates that have arrived and are not used yet; only a snapshot knows them.
    """

    committed: int = -1
    counts: tuple[int, ...] | None = None
    roster: WriteRoster | None = None
    kept: frozenset[int] = frozenset()
    evaluated: frozenset[int] = frozenset()
    saved: frozenset[int] = frozenset()
    testset_parts: frozenset[str] = frozenset()
    completed_phases: tuple[CompletePhase, ...] = ()
    waited: float = 0.0
    absent: tuple[tuple[str, str], ...] = ()
    losses: Losses = ()
    tests: tuple[tuple[int, MetricPairs], ...] = ()
    totals: Totals = NO_TOTALS
    node_tested: frozenset[int] = frozenset()
    used: tuple[UsedKey, ...] = ()
    buffered: tuple[Update, ...] = ()
