"""Detects a loss that has risen so far that the training does not converge."""

from __future__ import annotations

from collections.abc import Iterable

from fedsim.store.records import RoundRecord
from fedsim.update import TRAIN_LOSS

RISE = 1e9
LEAST_LOSS = 1e-3


def loss_rise(records: Iterable[RoundRecord]) -> str | None:
    """A note on a loss that has risen a billionfold since the first round that has one; None if none has."""
    first: float | None = None
    for record in sorted(records, key=lambda record: record.round):
        for loss in (record.train_metrics.get(TRAIN_LOSS), record.metrics.get("loss")):
            if loss is None:
                continue
            if first is None:
                first = loss
            elif loss > RISE * max(first, LEAST_LOSS):
                return (
                    f"the loss rose from {first:.3g} to {loss:.3g} in round {record.round}: the training does not "
                    "converge; scale the features, or choose a smaller local_learning_rate"
                )
    return None
