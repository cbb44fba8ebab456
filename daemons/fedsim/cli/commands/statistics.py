"""Shows the statistics of a task that trains nothing."""

from __future__ import annotations

from fedsim.cli.api import Json
from fedsim.cli.output import NONE, Output, number


def statistics_tables(out: Output, found: Json | None) -> None:
    """Show columns and labels (see `learning.pooled_statistics`), if all nodes have answered.

    `+ ?`: the owner of some node does not show how many.
    """
    if found is None:
        return
    nodes = list(found["examples"])
    examples = ", ".join(
        f"{node} {'about ' if found['guarded'][node] else ''}{found['examples'][node]}" for node in nodes
    )
    out.say("")
    out.say(
        f"examples: {examples}; numbers are based on at least {max(found['min_count'].values(), default=1)} of a node"
    )
    for node, why in found["left_out"].items():
        out.say(f"{node} does not count: it {why}")
    if columns := found["columns"]:
        orders = next((list(one["quantiles"]) for one in columns if one["quantiles"]), [])
        heading = ["values", "missing", "mean", "deviation", *(f"{float(order):.0%}" for order in orders)]
        out.say("")
        out.table(
            ["column", *heading, "least", "greatest"], [_column_row(one, orders) for one in columns], numbers=heading
        )
    if labels := found["labels"]:
        out.say("")
        rows = [[one["label"], *(_shown(one["nodes"].get(node)) for node in nodes)] for one in labels]
        out.table(["label", *nodes], rows, numbers=nodes)


def _column_row(column: Json, orders: list[str]) -> list[object]:
    quantiles = (number(column["quantiles"].get(order), 5) for order in orders)
    missing = f"{column['missing']}{' + ?' if column['missing_hidden'] else ''}"
    figures = (number(column[name], 5) for name in ("mean", "deviation"))
    ends = (number(column[name], 5) for name in ("least", "greatest"))
    return [column["name"], column["count"], missing, *figures, *quantiles, *ends]


def _shown(count: int | None) -> object:
    return NONE if count is None else count
