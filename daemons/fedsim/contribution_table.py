"""What nodes and clients contributed to a round, as the rows of a table that the task's page and the command show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SHOWN_CLIENTS = 20


@dataclass(frozen=True)
class ContributionRow:
    """One node, or one of its clients; `figures` are loss, norm, mean norm of its clients, drift and cosine."""

    node: str
    client: str | None
    clients: int
    examples: int
    figures: tuple[str, ...]


def contributions_of(newest_first: Iterable[tuple[int, Mapping[str, Any]]]) -> tuple[int, list[ContributionRow]] | None:
    """The newest round of which drift is known, or the newest: its nodes, and the clients furthest off.

    Args:
        newest_first: rounds with their contributions, as JSON (see `learning.contributions.Contributions`).
    """
    trained = [(number, found) for number, found in newest_first if found]
    if not trained:
        return None
    number, found = next((one for one in trained if one[1]["norm"] is not None), trained[0])
    nodes, clients = found["nodes"], found["clients"]
    furthest = sorted(clients, key=lambda client: _reach(clients[client]), reverse=True)[:SHOWN_CLIENTS]
    return number, [
        *(_row(node, None, one, found["norm"]) for node, one in nodes.items()),
        *(_row(clients[client]["node"], client, clients[client], found["norm"]) for client in furthest),
    ]


def _reach(one: Mapping[str, Any]) -> float:
    """How far a client is from the mean, or how far it moved where only that is known."""
    known = one["norm"] if one["distance"] is None else one["distance"]
    return -1.0 if known is None else float(known)


def _row(node: str, client: str | None, one: Mapping[str, Any], mean: float | None) -> ContributionRow:
    drift = None if one["distance"] is None or not mean else one["distance"] / mean
    figures = (one["loss"], one["norm"], one["client_norm"], drift, one["cosine"])
    shown = tuple("–" if value is None else f"{value:.3g}" for value in figures)
    return ContributionRow(node, client, one["num_clients"], one["num_examples"], shown)
