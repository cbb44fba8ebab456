"""The parts of nodes in a task, and what is recorded of them for another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from fedsim.label_counts import MOST_COUNTS, NamedCounts
from fedsim.learning.partition_view import named_counts
from fedsim.messages import DataSetInfo, EngineInfo, Message, Name
from fedsim.text import rounded


class NodeShare(Message):
    """A node's part in a task: the clients that live there, in one run of numbers, and how it trains them."""

    node: Name
    first_client: int
    num_clients: int
    engine: EngineInfo
    workers: int | None = Field(None, description="Processes that train chunks at once, as it measured; None: its own")
    chunk_clients: int | None = Field(None, description="Most clients in a chunk here; None: as in the whole plan")
    dataset_digest: str | None = None
    guard: str | None = Field(None, description="Digest of the secret that divides the node's guarded data set")
    num_train: int | None = Field(None, description="Training examples that the node announced")
    num_held_out: int = Field(0, description="Examples that the node announced to test models on")
    label_counts: NamedCounts | None = Field(None, description="Of the labels of its data, if its owner shows them")
    approval: bool = Field(False, description="Whether the node's owner must approve the task before it begins")

    @property
    def shown(self) -> NodeShare:
        """What a checkpoint's JSON says of it: of guarded data no exact count."""
        if self.guard is None or self.num_train is None:
            return self
        held_out = rounded(self.num_held_out)
        return self.model_copy(update={"num_train": rounded(self.num_train), "num_held_out": held_out})


class RecordedPlan(Message):
    """What is recorded of a task's plan with its row: what another run needs to be comparable byte by byte."""

    shares: Annotated[tuple[NodeShare, ...], Field(min_length=1)]
    chunk_clients: Annotated[int, Field(ge=1)]
    schema_from: Name | None = None
    version: str


def with_labels(shares: Sequence[NodeShare], infos: Mapping[str, DataSetInfo], *, each: bool) -> tuple[NodeShare, ...]:
    """Shares with the counts of labels that the nodes announced, for pictures of the partition.

    Where all have the same data, one node has them; with `each`, where clients have data of their node alone, each node
    does, unless these are too many to be recorded. Nodes divide guarded data in ways that no one else can draw.
    """
    found: dict[str, NamedCounts] = {}
    for share in shares:
        counts = named_counts(infos[share.node])
        if counts is not None and (each or (not found and all(one.guard is None for one in shares))):
            found[share.node] = counts
    if sum(map(len, found.values())) > MOST_COUNTS:
        return tuple(shares)
    return tuple(share.model_copy(update={"label_counts": found.get(share.node)}) for share in shares)


def share_out(total: int, capacities: Sequence[int]) -> list[int]:
    """Divide `total` clients over nodes in proportion to their capacity, each at least one (largest remainder)."""
    whole = sum(capacities)
    shares = [max(1, total * capacity // whole) for capacity in capacities]
    by_remainder = sorted(range(len(shares)), key=lambda i: (-(total * capacities[i] % whole), i))
    while (left := total - sum(shares)) != 0:
        step = 1 if left > 0 else -1
        for i in by_remainder:
            if left != 0 and 1 <= shares[i] + step <= capacities[i]:
                shares[i] += step
                left -= step
    return shares
