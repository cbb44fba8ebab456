"""The statistics of a task for its page: rows of a table with a histogram each, and a picture of the labels by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from fedsim.learning.column_statistics import ALL_FEATURES
from fedsim.learning.partition_picture import MAX_LABELS, draw_partition
from fedsim.web.i18n import Text, tr

SHOWN_COLUMNS = 200
"""Columns on the page; the download has all."""
PLOT_WIDTH, PLOT_HEIGHT = 128, 32
FOLDED: Mapping[str, Text] = {ALL_FEATURES: tr("all features")}


@dataclass(frozen=True)
class ShownColumn:
    """A column as the page shows it; `figures` are mean, deviation, the quantiles, and extremes if there are any.

    `path` is that of a histogram in an SVG of `PLOT_WIDTH` x `PLOT_HEIGHT`, from `left` to `right`; empty: none.
    `nodes`: (node, count, mean, deviation) of each node.
    """

    name: Text | str
    count: int
    missing: Text
    figures: tuple[str, ...]
    path: str
    left: str
    right: str
    nodes: tuple[tuple[str, str, str, str], ...]


@dataclass(frozen=True)
class ShownLabel:
    """A label with its count at each node as text, and the sum of those that are shown."""

    label: str
    counts: tuple[str, ...]
    together: int


@dataclass(frozen=True)
class ShownStatistics:
    """What the page shows; `hidden_columns` are those that do not fit, `picture` is an SVG of labels by node."""

    examples: tuple[tuple[str, str], ...]
    left_out: Mapping[str, str]
    orders: tuple[str, ...]
    columns: tuple[ShownColumn, ...]
    extremes: bool
    hidden_columns: int
    nodes: tuple[str, ...]
    labels: tuple[ShownLabel, ...]
    picture: Markup | None
    guarded: tuple[str, ...]
    min_count: int


def shown_statistics(found: Mapping[str, Any] | None) -> ShownStatistics | None:
    """The page's view of what `pooled_statistics` made; None of nothing."""
    if found is None:
        return None
    nodes = tuple(found["examples"])
    columns = found["columns"][:SHOWN_COLUMNS]
    extremes = any(column["least"] is not None for column in columns)
    return ShownStatistics(
        examples=tuple(
            (node, _count(number, guarded=found["guarded"][node])) for node, number in found["examples"].items()
        ),
        left_out=found["left_out"],
        orders=tuple(f"{float(order):.0%}" for order in _orders(columns)),
        columns=tuple(_shown(column, found, _orders(columns), extremes=extremes) for column in columns),
        extremes=extremes,
        hidden_columns=len(found["columns"]) - len(columns),
        nodes=nodes,
        labels=tuple(_label(one, nodes, found["guarded"]) for one in found["labels"][:MAX_LABELS]),
        picture=_picture(found["labels"], nodes),
        guarded=tuple(node for node in nodes if found["guarded"][node]),
        min_count=max(found["min_count"].values(), default=1),
    )


def figure(value: float | None) -> str:
    """A measured number with up to five digits; a dash for None."""
    return "–" if value is None else f"{value:.5g}"


def _count(number: int | None, *, guarded: bool) -> str:
    return "–" if number is None else f"≈ {number}" if guarded else str(number)


def _orders(columns: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return next((tuple(column["quantiles"]) for column in columns if column["quantiles"]), ())


def _shown(
    column: Mapping[str, Any], found: Mapping[str, Any], orders: Sequence[str], *, extremes: bool
) -> ShownColumn:
    missing = tr("%(message)s", message=column["missing"])
    if hidden := column["missing_hidden"]:
        missing = tr("%(known)s; not shown: %(nodes)s", known=column["missing"], nodes=", ".join(hidden))
    values = [column["mean"], column["deviation"], *(column["quantiles"].get(order) for order in orders)]
    histogram = column["histogram"]
    edges = () if histogram is None else (histogram["edges"][0], histogram["edges"][-1])
    return ShownColumn(
        name=FOLDED.get(column["name"], column["name"]),
        count=column["count"],
        missing=missing,
        figures=tuple(map(figure, [*values, *(column[name] for name in ("least", "greatest") if extremes)])),
        path="" if histogram is None else _bars(histogram["counts"]),
        left=figure(edges[0]) if edges else "",
        right=figure(edges[1]) if edges else "",
        nodes=tuple(
            (node, "–", "–", "–")
            if one is None
            else (
                node,
                _count(one["count"], guarded=found["guarded"][node]),
                figure(one["mean"]),
                figure(one["deviation"]),
            )
            for node, one in column["nodes"].items()
        ),
    )


def _bars(counts: Sequence[int]) -> str:
    """Bars side by side from the bottom of the plot, as one path."""
    width, most = PLOT_WIDTH / len(counts), max(1, *counts)
    heights = [round((PLOT_HEIGHT - 1) * count / most, 1) for count in counts]
    return "".join(
        f"M{round(number * width, 2)} {PLOT_HEIGHT}v{-height}h{round(width - 0.5, 2)}v{height}z"
        for number, height in enumerate(heights)
        if height
    )


def _label(one: Mapping[str, Any], nodes: Sequence[str], guarded: Mapping[str, bool]) -> ShownLabel:
    counts = one["nodes"]
    return ShownLabel(
        label=one["label"],
        counts=tuple(_count(counts.get(node), guarded=guarded[node]) for node in nodes),
        together=sum(count or 0 for count in counts.values()),
    )


def _picture(labels: Sequence[Mapping[str, Any]], nodes: Sequence[str]) -> Markup | None:
    """How many examples of each label each node has; a count that is not shown is left empty."""
    if not labels or not nodes:
        return None
    counts = np.array([[one["nodes"].get(node) or 0 for one in labels] for node in nodes], np.int64)
    drawn = draw_partition(counts, [one["label"] for one in labels], list(nodes))
    return Markup(drawn)  # noqa: S704 - `draw_partition` escapes all names
