"""How many examples have each label, as an owner lets others see it: without small counts, and rounded if guarded.

A data set's partition follows from these counts and a task's settings: a picture of it says no more than they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import Field

from fedsim.text import rounded

MOST_LABELS: Final = 1000
"""Labels of a data set whose counts are announced; with more, none are."""
MOST_COUNTS: Final = 20_000
"""Counts in one announcement, over all data sets: it is sent every few seconds."""
LabelCounts = Annotated[tuple[Annotated[int, Field(ge=0, le=10**12)] | None, ...], Field(max_length=MOST_LABELS)]
"""The number of training examples with each label; None: too few to be shown."""

NamedCounts = Annotated[dict[str, Annotated[int, Field(ge=0, le=10**12)] | None], Field(max_length=MOST_LABELS)]
"""The same by the labels' names, in their order: nodes can number the same labels in other ways."""


def shown_counts(counts: Sequence[int | None], least: int, *, guarded: bool) -> tuple[int | None, ...]:
    """Counts as they may be shown, without those below `least`.

    The number of all examples is known. So that it gives away no count below `least`, further ones are left out, the
    smallest first, until those that are left out are none or at least `least` examples together.
    """
    shown = [None if count is None or count < least else count for count in counts]
    hidden = sum(count or 0 for count, kept in zip(counts, shown, strict=True) if kept is None)
    for label in sorted(range(len(shown)), key=lambda label: shown[label] or 0):
        if hidden == 0 or hidden >= least:
            break
        if (count := shown[label]) is not None:
            shown[label], hidden = None, hidden + count
    return tuple(rounded(count) if guarded and count is not None else count for count in shown)
