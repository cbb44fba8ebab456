"""Screenings: compare the updates of a round with each other before they are combined.

A screening sees what the server sees: the update of each client, or the weighted mean of a chunk of clients where the
strategy's `uplink` is `SUM`. Like the passes of a strategy it sees one block of parameters of all updates at a time, so
that memory depends on neither the model's size nor the number of clients. Only the parameters are compared, not the
further arrays that a strategy may declare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from fedsim.learning.aggregate import STACKED_BLOCK, run_passes
from fedsim.learning.examples import FloatArray
from fedsim.learning.strategies import Passes, Strategy
from fedsim.plugins import Plugin
from fedsim.settings import TaskSettings
from fedsim.update import PARAMETERS, Update


@dataclass(frozen=True)
class UpdateFinding:
    """What a screening finds of one update.

    Attributes:
        figures: by name; one that is not finite is recorded as unknown.
        outside: why the update differs from the others by more than the options allow; empty if it does not.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    outside: str = ""


class Screened(BaseModel):
    """The record of one update: its finding, whose it is, and whether it is left out of the aggregation.

    `client` is None where the update represents all clients of its chunk; `node` is None outside of the platform.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    node: str | None = None
    chunk: int
    client: int | None = None
    figures: dict[str, float | None] = {}
    outside: str = ""
    excluded: bool = False


class Screening(Plugin):
    """The base of all screenings.

    Attributes:
        excludes: whether updates that are outside are left out of the aggregation. They are never all of them: where
            half of a round's updates or more are outside, all count, because then nothing says which half is right.
    """

    excludes: ClassVar[bool] = False

    def passes(self, weights: Sequence[float]) -> Passes:
        """Passes over the updates, as those of `Strategy.prepare`; the generator returns an `UpdateFinding` of each.

        Args:
            weights: of the updates, in canonical order.
        """
        raise NotImplementedError


def make_screening(settings: TaskSettings) -> Screening | None:
    """The screening that the settings name, if any; raises `BadInput` if it cannot be made."""
    if not settings.screening:
        return None
    screening: Screening = settings.plugin("screening")
    return screening


def screen(
    screening: Screening, strategy: Strategy, global_vector: FloatArray, updates: Sequence[Update]
) -> tuple[tuple[Screened, ...], list[Update]]:
    """Screen a round's updates; returns the record of each, and the updates that count.

    Args:
        screening: the rule.
        strategy: weighs the updates.
        global_vector: float32 [P], the model that the clients received.
        updates: with their arrays, in canonical order.
    """
    weights = [strategy.weight(update.num_examples, update.num_clients) for update in updates]
    vectors = [update.arrays[PARAMETERS] for update in updates]
    with np.errstate(over="ignore", invalid="ignore"):  # an update that is not finite is a finding
        passes = screening.passes(weights)
        findings: Sequence[UpdateFinding] = run_passes(
            passes, global_vector, vectors, max(1, STACKED_BLOCK // len(updates))
        )
    outside = sum(bool(finding.outside) for finding in findings)
    excludes = screening.excludes and 2 * outside < len(updates)
    screened = tuple(
        Screened(
            node=update.node,
            chunk=update.chunk,
            client=update.client,
            figures={name: float(value) if np.isfinite(value) else None for name, value in finding.figures.items()},
            outside=finding.outside,
            excluded=excludes and bool(finding.outside),
        )
        for update, finding in zip(updates, findings, strict=True)
    )
    return screened, [update for update, record in zip(updates, screened, strict=True) if not record.excluded]
