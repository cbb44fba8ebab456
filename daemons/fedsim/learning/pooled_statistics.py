"""The statistics of several nodes together, from what each of them let leave (`column_statistics`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fedsim.learning.column_statistics import BINS, ColumnSummary, NodeStatistics
from fedsim.problems import problems_text

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
SHOWN_BINS: Final = 32
MIDDLE: Final = (0.01, 0.99)
"""The plot of a column has the values between these quantiles."""
LEAST_VARIANCE: Final = 1e-12
"""A variance below this share of the mean square is rounding: the column is constant."""
Json = dict[str, Any]
Edges = NDArray[np.float64]


def pooled_statistics(answers: Mapping[str, object], columns: Sequence[str], labels: Sequence[str]) -> Json:
    """Combine the answers of nodes, as JSON.

    Args:
        answers: of each node, by its name; one that is not a valid `NodeStatistics` does not count.
        columns: their order; further ones follow in the order of the first node that has them.
        labels: the words of the task's labels, in their order.

    Returns:
        `examples` by node; `left_out`: nodes that do not count, with the reason; `min_count` and `guarded` by node;
        `columns`: each with `name`, `count`, `missing` (the sum over the nodes that show it, `missing_hidden` are the
        others), `mean`, `deviation`, `quantiles` by their order, `least` and `greatest` (null unless all nodes show
        them), `histogram` (`edges`, `counts`), and `nodes`: count, mean and deviation at each, null where a node has
        too few values; `labels`: each with its `label` and its count at each of the `nodes`, null where it has too few.
    """
    found: dict[str, NodeStatistics] = {}
    left_out: dict[str, str] = {}
    for node, answer in sorted(answers.items()):
        try:
            found[node] = NodeStatistics.model_validate(answer)
        except ValidationError as error:
            left_out[node] = f"reported no valid statistics: {problems_text(error)}"[:500]
    known = dict.fromkeys(columns) | {name: None for one in found.values() for name in one.columns}
    words = dict.fromkeys(labels) | {word: None for one in found.values() for word in one.labels}
    return {
        "examples": {node: one.examples for node, one in found.items()},
        "guarded": {node: one.guarded for node, one in found.items()},
        "min_count": {node: one.min_count for node, one in found.items()},
        "left_out": left_out,
        "columns": [
            _pooled(name, {node: one.columns[name] for node, one in found.items() if name in one.columns})
            for name in known
            if any(name in one.columns for one in found.values())
        ],
        "labels": [
            {"label": word, "nodes": {node: one.labels[word] for node, one in found.items() if word in one.labels}}
            for word in words
            if any(word in one.labels for one in found.values())
        ],
    }


def _pooled(name: str, parts: Mapping[str, ColumnSummary | None]) -> Json:
    shown = {node: part for node, part in parts.items() if part is not None and part.count > 0}
    count = sum(part.count for part in shown.values())
    mean, deviation = _moments(list(shown.values()))
    all_extremes = bool(shown) and all(part.least is not None and part.greatest is not None for part in shown.values())
    quantiles, histogram = _distribution(list(shown.values()))
    return {
        "name": name,
        "count": count,
        "missing": sum(part.missing or 0 for part in shown.values()),
        "missing_hidden": [node for node, part in parts.items() if part is None or part.missing is None],
        "mean": mean,
        "deviation": deviation,
        "quantiles": quantiles,
        "least": min(part.least or 0.0 for part in shown.values()) if all_extremes else None,
        "greatest": max(part.greatest or 0.0 for part in shown.values()) if all_extremes else None,
        "histogram": histogram,
        "nodes": {node: None if node not in shown else _of_node(shown[node]) for node in parts},
    }


def _of_node(part: ColumnSummary) -> Json:
    mean, deviation = _moments([part])
    return {"count": part.count, "missing": part.missing, "mean": mean, "deviation": deviation}


def _moments(parts: Sequence[ColumnSummary]) -> tuple[float | None, float | None]:
    """The mean and the standard deviation (divided by n), by the sums of all parts; None of no values."""
    count = sum(part.count for part in parts)
    if not count:
        return None, None
    mean = sum(part.total for part in parts) / count
    square = sum(part.squares for part in parts) / count
    variance = square - mean**2
    return mean, sqrt(variance) if variance > LEAST_VARIANCE * square else 0.0


def _distribution(parts: Sequence[ColumnSummary]) -> tuple[dict[str, float], Json | None]:
    """Quantiles and a histogram of all values, see `_cumulative`."""
    if not parts:
        return {}, None
    curves = [_cumulative(part) for part in parts]
    places = np.unique(np.concatenate([edges for edges, _ in curves]))
    weights = np.array([part.count for part in parts], np.float64)
    shares = np.stack([np.interp(places, edges, below) for edges, below in curves])
    below = weights @ shares / weights.sum()
    quantiles = {str(order): _quantile(places, below, order) for order in QUANTILES}
    first, last = (_quantile(places, below, order) for order in MIDDLE)
    if np.isclose(first, last, rtol=1e-9, atol=0.0):
        return quantiles, None
    edges = np.linspace(first, last, SHOWN_BINS + 1)
    counts = np.diff(np.interp(edges, places, below)) * weights.sum()
    return quantiles, {"edges": edges.tolist(), "counts": np.rint(counts).astype(int).tolist()}


def _cumulative(part: ColumnSummary) -> tuple[Edges, Edges]:
    """Places of a node's column in ascending order, and the share of its values up to each of them.

    The values of a bin count as evenly spread; those of a group of bins as evenly spread around their mean, as far as
    the group reaches to both sides.
    """
    counted = float(sum(number for _, number, _ in part.histogram))
    if sum(size for size, _, _ in part.histogram) != BINS or counted <= 0 or not part.low < part.high:
        middle = part.total / part.count  # a constant column: a step at its value
        return np.array([np.nextafter(middle, -np.inf), middle]), np.array([0.0, 1.0])
    width = (part.high - part.low) / BINS
    places, below = [part.low], [0.0]
    first, share = 0, 0.0
    for size, number, mean in part.histogram:
        left, right = part.low + first * width, part.low + (first + size) * width
        middle = min(max(mean, left), right) if size > 1 else (left + right) / 2
        reach = min(middle - left, right - middle)
        places += [middle - reach, middle + reach]
        below += [share, share + number / counted]
        first, share = first + size, share + number / counted
    return _ascending(np.array([*places, part.high])), np.array([*below, 1.0])


def _ascending(places: Edges) -> Edges:
    """The places, each a little above the one before it where they are equal."""
    least = np.spacing(np.abs(places).max()) * np.arange(len(places))
    ascending: Edges = np.maximum.accumulate(places) + least
    return ascending


def _quantile(places: Edges, below: Edges, order: float) -> float:
    """The least place up to which a share `order` of the values are, by linear interpolation."""
    after = int(np.searchsorted(below, order - 1e-12))
    if after == 0 or after >= len(below):
        return float(places[min(after, len(places) - 1)])
    share = (order - below[after - 1]) / (below[after] - below[after - 1])
    return float(places[after - 1] + max(share, 0.0) * (places[after] - places[after - 1]))
