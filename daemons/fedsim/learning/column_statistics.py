"""Statistics of a data set without any training: what a node lets leave of its columns and labels.

The answer follows from the data and the institution's rules alone, never from the question: whoever asks again, with
other nodes or through another server, learns nothing more. Counts and sums add up over nodes (`pooled_statistics`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10, sqrt
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fedsim.data_schema import Finite
from fedsim.label_counts import MOST_LABELS, NamedCounts, shown_counts
from fedsim.learning.examples import Examples
from fedsim.learning.phases import Content, Phase
from fedsim.text import rounded

if TYPE_CHECKING:
    from fedsim.learning.engines import ClientData

STATISTICS: Final = "statistics"
"""The phase in which nodes are asked, and the kind of task that consists of it."""
BINS: Final = 64
DEVIATIONS: Final = 5.0
"""A histogram reaches this many standard deviations from the mean to both sides: by Cantelli's inequality at most one
value in 26 is beyond each end, so the quantiles from 0.05 to 0.95 are inside."""
MOST_COLUMNS: Final = 1000
ALL_FEATURES: Final = "(all features)"
ROUNDING: Final = 1e-9
"""A deviation below this share of the mean is rounding: the column is constant."""
BLOCK_VALUES: Final = 2**20
"""Values that are converted at a time."""

Total = Annotated[int, Field(ge=0, le=10**15)]
Values = NDArray[Any]


class ColumnSummary(BaseModel):
    """A column at one node; `missing` is None where fewer values than the institution's `min_count` are missing.

    `histogram` lists (neighbouring bins, values in them, their mean) from `low` to `high`: `BINS` bins of equal width
    in all. A value beyond an end counts as that end, and bins with too few values are joined with neighbours. A
    constant column has none.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    count: Total
    missing: Total | None
    total: Finite
    squares: Finite
    low: Finite
    high: Finite
    histogram: Annotated[
        tuple[tuple[Annotated[int, Field(ge=1, le=BINS)], Total, Finite], ...], Field(max_length=BINS)
    ] = ()
    least: Finite | None = None
    greatest: Finite | None = None


class NodeStatistics(BaseModel):
    """What leaves a node: its examples, its columns by name, how many examples have each label by its word.

    None is a column or a label of which the node has too few values.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    examples: Total
    guarded: bool
    min_count: Annotated[int, Field(ge=1)]
    columns: Annotated[
        dict[Annotated[str, Field(max_length=400)], ColumnSummary | None], Field(max_length=MOST_COLUMNS)
    ]
    labels: NamedCounts = {}


@dataclass(frozen=True)
class StatisticsRule:
    """What an institution lets leave of a data set.

    Attributes:
        allowed: see `institution.statistics` in client.yml.
        min_count: the least number of examples behind a count.
        guarded: whether the data is guarded: numbers are rounded, and no extremes leave.
    """

    allowed: Literal["none", "sums", "extremes"]
    min_count: int
    guarded: bool


class DataStatisticsPhase(Phase):
    """Ask each node for the statistics of its training examples; `node_statistics` is the answer."""

    name = STATISTICS
    timeout_seconds = 3600.0

    def answer(self, question: Content, data: ClientData) -> Content:
        """A worker answers with `node_statistics`: the examples that train are scaled, and lack no value."""
        raise NotImplementedError

    def summary(self, answers: Mapping[str, Content]) -> str:
        """Whose examples count."""
        return f"of the training examples of {', '.join(answers)}"


@dataclass(frozen=True)
class Column:
    """The numbers of a column, [n] or [n, k] with k values of each example, divided by `scale`; NaN is missing."""

    values: Values
    scale: float = 1.0

    @property
    def width(self) -> int:
        """How many values each example has."""
        return int(self.values.size // max(len(self.values), 1))

    def blocks(self) -> Iterator[NDArray[np.float64]]:
        """The values that are not missing, float64 [m], in the order of the examples and some at a time."""
        step = max(1, BLOCK_VALUES // max(self.width, 1))
        for start in range(0, len(self.values), step):
            block = self.values[start : start + step].astype(np.float64).reshape(-1) / self.scale
            yield block[~np.isnan(block)]


def node_statistics(
    columns: Mapping[str, Column], examples: Examples, words: Sequence[str], rule: StatisticsRule
) -> NodeStatistics:
    """The statistics of a node's training examples, as they may leave it.

    Args:
        columns: of the same examples, by name.
        examples: the examples whose labels are counted.
        words: of the labels, in the order of their numbers.
        rule: of the institution.
    """
    count = len(examples)
    counts: list[int | None] = list(_label_counts(examples, len(words)))
    if examples.targets != "classes":
        # Each label is a question of its own: how many do not have it is as small a count.
        counts = [None if number is None or 0 < count - number < rule.min_count else number for number in counts]
    shown = shown_counts(counts, rule.min_count, guarded=rule.guarded) if len(words) <= MOST_LABELS else ()
    return NodeStatistics(
        examples=rounded(count) if rule.guarded else count,
        guarded=rule.guarded,
        min_count=rule.min_count,
        columns={name: _summary(values, rule) for name, values in list(columns.items())[:MOST_COLUMNS]},
        labels=dict(zip(words, shown, strict=False)) if len(shown) == len(words) else {},
    )


def feature_columns(examples: Examples) -> dict[str, Column]:
    """The columns of examples that no table names: each feature of a short vector, else all features as one column."""
    flat = examples.features.reshape(len(examples), -1)
    if examples.features.ndim == 2 and flat.shape[1] <= MOST_COLUMNS:
        return {str(number): Column(flat[:, number], examples.scale) for number in range(flat.shape[1])}
    return {ALL_FEATURES: Column(flat, examples.scale)}


def target_columns(examples: Examples, words: Sequence[str]) -> dict[str, Column]:
    """The columns of targets that are numbers."""
    if examples.targets != "numbers":
        return {}
    return {word: Column(examples.labels[:, number]) for number, word in enumerate(words[: examples.labels.shape[1]])}


def _label_counts(examples: Examples, number: int) -> list[int]:
    """How many examples have each label; an example with several labels counts for each of them once."""
    labels = examples.labels
    if examples.targets == "numbers":
        return []
    if examples.targets == "flags":
        return [int(count) for count in (labels > 0).sum(axis=0)]
    found = labels if labels.ndim == 1 else np.concatenate([np.unique(row) for row in labels.reshape(len(labels), -1)])
    return [int(count) for count in np.bincount(found, minlength=number)]


def _summary(column: Column, rule: StatisticsRule) -> ColumnSummary | None:
    """A column as it may leave; None if too few examples have a value."""
    every, least = int(column.values.size), rule.min_count * column.width
    present = sum(map(len, column.blocks()))
    missing: int | None
    if present < least:
        return None
    mean = sum(float(block.sum()) for block in column.blocks()) / present
    deviation = sqrt(sum(float(((block - mean) ** 2).sum()) for block in column.blocks()) / present)
    if deviation <= ROUNDING * abs(mean):
        deviation = 0.0
    lacking = every - present
    if 0 < lacking < least:
        # The number of examples is known: any exact count, and of whole numbers the exact mean, would give it away.
        missing, count = None, every
    else:
        missing, count, lacking = lacking, present, 0
    unit = 0.0
    if (rule.guarded or missing is None) and deviation > 0.0:  # two digits of the deviation, the mean to the same unit
        unit = 10.0 ** (floor(log10(deviation)) - 1)
        mean, deviation = round(mean / unit) * unit, round(deviation / unit) * unit
    if rule.guarded:
        count, missing = rounded(count), None if missing is None else rounded(missing)
    ends = mean - DEVIATIONS * deviation, mean + DEVIATIONS * deviation
    extremes: tuple[float, float] | None = None
    if rule.allowed == "extremes" and not rule.guarded:
        blocks = [block for block in column.blocks() if len(block)]
        ends = extremes = min(float(block.min()) for block in blocks), max(float(block.max()) for block in blocks)
    return ColumnSummary(
        count=count,
        missing=missing,
        total=count * mean,
        squares=count * (deviation**2 + mean**2),
        low=ends[0],
        high=ends[1],
        histogram=_histogram(column, ends, least, unit, lacking, guarded=rule.guarded),
        least=None if extremes is None else extremes[0],
        greatest=None if extremes is None else extremes[1],
    )


def _histogram(
    column: Column, ends: tuple[float, float], least: int, unit: float, lacking: int, *, guarded: bool
) -> tuple[tuple[int, int, float], ...]:
    """The values in bins between the ends, joined until each group of neighbouring bins has at least `least`.

    Means are rounded to multiples of `unit`, unless it is 0, and counts of guarded data. The largest group counts
    `lacking` more values than it has.
    """
    low, high = ends
    width = (high - low) / BINS
    if not width > 0.0 or not np.isfinite(width):
        return ()
    counts, totals = np.zeros(BINS, np.int64), np.zeros(BINS)
    for block in column.blocks():
        inside = np.clip(block, low, high)
        numbers = np.minimum((inside - low) / width, BINS - 1).astype(np.int64)
        counts += np.bincount(numbers, minlength=BINS)
        totals += np.bincount(numbers, inside, minlength=BINS)
    groups: list[tuple[int, int, float]] = []
    bins, number, total = 0, 0, 0.0
    for count, sum_of_bin in zip(counts.tolist(), totals.tolist(), strict=True):
        bins, number, total = bins + 1, number + count, total + sum_of_bin
        if number >= least:
            groups.append((bins, number, total))
            bins, number, total = 0, 0, 0.0
    if bins and groups:  # what is left over belongs to the last group
        before = groups.pop()
        groups.append((before[0] + bins, before[1] + number, before[2] + total))
    largest = max(range(len(groups)), key=lambda at: groups[at][1])
    return tuple(
        (
            size,
            rounded(number) if guarded else number,
            min(max(round(mean / unit) * unit if unit else mean, low), high),
        )
        for at, (size, count, summed) in enumerate(groups)
        for number, mean in [(count + (lacking if at == largest else 0), summed / count)]
    )
