"""Counts, for each node of a task, the updates that were expected of its clients and those that did not count."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task_events import WriteRoster
from fedsim.store.records import RoundRecord


def expected_of(plan: Plan, number: int) -> dict[str, int]:
    """How many clients of each node the round has chosen."""
    expected: Counter[str] = Counter()
    for chunk in plan.chunks(number):
        expected[plan.nodes[chunk.node]] += len(chunk.clients)
    return dict(expected)


def expected_of_roster(plan: Plan, roster: WriteRoster) -> dict[str, int]:
    """The same, from the round's roster: without drawing the cohort again."""
    expected = Counter(_missing_of(plan, roster.missing))
    for update in roster.updates:
        expected[update.node or ""] += update.num_clients
    return dict(expected)


def count_round(
    plan: Plan, before: Mapping[str, Mapping[str, int]], record: RoundRecord, expected: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """The participation up to this round; see `store.records.Task`.

    Args:
        plan: of the task.
        before: the participation up to the round before.
        record: the round's.
        expected: how many clients of each node the round has chosen.
    """
    missing = _missing_of(plan, record.missing)
    after = {}
    for share in plan.shares:
        known, lost = before.get(share.node, {}), missing[share.node]
        after[share.node] = {
            "first_client": share.first_client,
            "num_clients": share.num_clients,
            "rounds": known.get("rounds", 0) + (expected.get(share.node, 0) > 0),
            "rounds_missing": known.get("rounds_missing", 0) + (lost > 0),
            "expected": known.get("expected", 0) + expected.get(share.node, 0),
            "missing": known.get("missing", 0) + lost,
        }
    return after


def _missing_of(plan: Plan, missing: tuple[int, ...]) -> Counter[str]:
    """How many of the missing clients (ascending) are of each node."""
    bounds = {share.node: (share.first_client, share.first_client + share.num_clients) for share in plan.shares}
    return Counter(
        {node: bisect_left(missing, end) - bisect_left(missing, first) for node, (first, end) in bounds.items()}
    )


def summed_of(plan: Plan, roster: WriteRoster | None) -> tuple[tuple[int, int], ...]:
    """What an asynchronous round summed, in this order: the round in which each update began, and its client."""
    if plan.buffering is None or roster is None:
        return ()
    return tuple((update.base_round, -1 if update.client is None else update.client) for update in roster.updates)
