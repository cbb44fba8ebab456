"""What is recorded of the contributions of nodes and clients to a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim.learning.contributions import Contribution, Contributions
from fedsim.state_machines.plan import Plan
from fedsim.text import rounded
from fedsim.update import UPDATE_NORM, Update, mean_metrics

MAX_RECORDED = 200
"""Most clients of a round whose figures are kept."""


def metrics_of_training(updates: Sequence[Update]) -> dict[str, float | None]:
    """The metrics of training over all updates; the norms are among the contributions."""
    return {name: value for name, value in mean_metrics(updates).items() if name != UPDATE_NORM}


def kept_contributions(plan: Plan, found: Contributions) -> dict[str, Any]:
    """The figures as they are stored and shown; of guarded data with two digits, and no exact counts.

    A client that its node does not have is left out: a node reports figures of its own clients alone.
    """
    if not found.nodes:
        return {}
    shares = {share.node: share for share in plan.shares}
    nodes = {name: _shown(one, guarded=shares[name].guard is not None) for name, one in found.nodes.items()}
    clients: dict[str, Any] = {}
    for client, one in sorted(found.clients.items()):
        share = shares[one.node]
        if share.first_client <= client < share.first_client + share.num_clients and len(clients) < MAX_RECORDED:
            clients[str(client)] = _shown(one, guarded=share.guard is not None)
    norm = _two_digits(found.norm) if plan.guarded else found.norm
    return {"norm": norm, "nodes": nodes, "clients": clients}


def _shown(one: Contribution, *, guarded: bool) -> dict[str, Any]:
    content = one.model_dump(mode="json")
    if guarded:
        content |= {name: _two_digits(value) for name, value in content.items() if isinstance(value, float)}
        content["num_examples"] = rounded(one.num_examples)
    return content


def _two_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.2g}")
