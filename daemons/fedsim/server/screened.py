"""What a round's screening means for its record: the figures that are kept, the clients that are missing, the words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedsim.learning.screenings import Screened, make_screening
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task_events import WriteRoster
from fedsim.update import Update

MAX_RECORDED = 200
"""Most updates of a round whose figures are kept; those that are outside come first."""
MAX_NAMED = 20


def counted(updates: Sequence[Update], screened: Sequence[Screened]) -> tuple[Update, ...]:
    """The updates of a roster that are part of the round's model."""
    excluded = {(record.chunk, record.client) for record in screened if record.excluded}
    return tuple(update for update in updates if (update.chunk, update.client) not in excluded)


def missing_with_excluded(plan: Plan, roster: WriteRoster, screened: Sequence[Screened]) -> list[int]:
    """The clients whose updates do not count in a round: those that did not answer, and those that were left out."""
    excluded = [record for record in screened if record.excluded]
    found = set(roster.missing)
    if excluded:
        chunks = {chunk.id: chunk.clients for chunk in plan.chunks(roster.round, roster.cohort)}
        for record in excluded:
            found.update(chunks[record.chunk] if record.client is None else (record.client,))
    return sorted(found)


def kept_figures(screened: Sequence[Screened], *, guarded: bool) -> tuple[dict[str, Any], ...]:
    """The records as they are stored and shown; of guarded data with two digits of each figure."""
    chosen = sorted(range(len(screened)), key=lambda place: (not screened[place].outside, place))[:MAX_RECORDED]
    records = [screened[place].model_dump(mode="json") for place in sorted(chosen)]
    if guarded:
        for record in records:
            record["figures"] = {
                name: None if value is None else float(f"{value:.2g}") for name, value in record["figures"].items()
            }
    return tuple(records)


def screening_events(plan: Plan, number: int, screened: Sequence[Screened]) -> list[str]:
    """What is to be said about the updates of a round that are outside: one sentence for each node."""
    outside = [record for record in screened if record.outside]
    if not outside:
        return []
    screening = make_screening(plan.settings)
    all_count = screening is not None and screening.excludes and not any(record.excluded for record in outside)
    why = "; it counts, because half of the updates or more are outside" if all_count else ""
    texts = []
    for node in dict.fromkeys(record.node for record in outside):
        found = [record for record in outside if record.node == node]
        what = "leaves out" if found[0].excluded else "has an outlier in"
        more = f"; {len(found) - 1} more of this node" if len(found) > 1 else ""
        texts.append(f"round {number} {what} {_whose(found[0])} of node {node}: {found[0].outside}{more}{why}")
    rest = len(texts) - MAX_NAMED
    return [*texts[:MAX_NAMED], f"round {number} has outliers of {rest} more nodes"] if rest > 0 else texts


def _whose(record: Screened) -> str:
    if record.client is None:
        return f"the update of chunk {record.chunk}"
    return f"the update of client {record.client}"
