"""Checks of screenings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim import plugins
from fedsim.learning.aggregate import run_passes
from fedsim.learning.examples import FloatArray
from fedsim.learning.screenings import Screening, UpdateFinding
from fedsim.testing.conformance.candidate import Candidate, require, require_reproducible_task

SIZE = 211
WEIGHTS = (30.0, 600.0, 10.0, 20.0, 50.0, 80.0, 130.0)


def _received() -> FloatArray:
    return np.random.default_rng(99).normal(size=SIZE).astype(np.float32)


def _updates(scale: float = 1.0) -> list[FloatArray]:
    """Updates with one direction in common, each with noise of its own."""
    rng = np.random.default_rng(5)
    common = rng.normal(size=SIZE)
    made = [common + rng.normal(size=SIZE) for _ in WEIGHTS]
    return [(_received() + scale * update).astype(np.float32) for update in made]


def _findings(screening: Screening, updates: Sequence[FloatArray], block: int = SIZE) -> Sequence[UpdateFinding]:
    with np.errstate(over="ignore", invalid="ignore"):
        findings: Sequence[UpdateFinding] = run_passes(screening.passes(WEIGHTS), _received(), updates, block)
    return findings


def finds_something_of_each_update(candidate: Candidate) -> None:
    """There is a finding for each update, all with the same figures."""
    findings = _findings(candidate.make(), _updates())
    require(len(findings) == len(WEIGHTS), f"{len(WEIGHTS)} updates have {len(findings)} findings")
    require(len({tuple(finding.figures) for finding in findings}) == 1, "the findings have different figures")


def screens_deterministically(candidate: Candidate) -> None:
    """The same updates give the same findings, in a new instance as well: nothing is kept in the instance."""
    screening: Screening = candidate.make()
    first = _findings(screening, _updates())
    require(_findings(screening, _updates()) == first, "the same updates, screened twice, gave different findings")
    require(_findings(candidate.make(), _updates()) == first, "a new instance gave different findings")


def screening_passes_add_up(candidate: Candidate) -> None:
    """The values of the passes are sums over blocks: where blocks begin changes nothing but rounding."""
    whole = _findings(candidate.make(), _updates())
    for block in (7, 64):
        parts = _findings(candidate.make(), _updates(), block)
        for one, other in zip(whole, parts, strict=True):
            same = np.allclose(list(one.figures.values()), list(other.figures.values()), rtol=1e-6, atol=1e-9)
            require(same, f"passes over blocks of {block} parameters give other figures; what a pass returns is summed")


def equal_updates_are_not_outside(candidate: Candidate) -> None:
    """Where all clients send the same update, or none moves the model, no update is outside."""
    for name, update in {"equal": _updates()[0], "unchanged": _received()}.items():
        found = _findings(candidate.make(), [update.copy() for _ in WEIGHTS])
        require(not any(finding.outside for finding in found), f"of {name} updates one is outside: {found}")


def an_update_that_is_not_finite_is_a_finding(candidate: Candidate) -> None:
    """An update with NaN or infinity raises no error, and makes no other update an outlier."""
    for value in (np.nan, np.inf):
        updates = _updates()
        updates[3][5] = value
        found = _findings(candidate.make(), updates)
        require(found[3].outside, f"an update with {value} is not outside")
        require(sum(bool(finding.outside) for finding in found) == 1, f"one update with {value} makes others outliers")


def only_reads_the_updates(candidate: Candidate) -> None:
    """Updates and the received model may be read-only memory-mapped files."""
    updates = _updates()
    for update in updates:
        update.flags.writeable = False
    _findings(candidate.make(), updates)


def screened_tasks_train_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    require_reproducible_task(candidate, plugins.SCREENINGS, "screening")


CHECKS = (
    finds_something_of_each_update,
    screens_deterministically,
    screening_passes_add_up,
    equal_updates_are_not_outside,
    an_update_that_is_not_finite_is_a_finding,
    only_reads_the_updates,
    screened_tasks_train_reproducibly,
)
