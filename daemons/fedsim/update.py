"""An update: what a client, or a chunk of clients, contributes to a round.

One type carries it from the engine that trained it to the aggregation that uses it. Its arrays are in memory while it
is computed; once they are written, the file with this digest holds them, and daemons handle the rest alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, PrivateAttr

from fedsim.messages import Count, Message, Name

Arrays = Mapping[str, NDArray[np.float32]]
MAX_METRICS = 100
_Number = Annotated[int, Field(ge=0, le=1_000_000)]


class Update(Message):
    """An update of one client, or of the `num_clients` clients of a chunk (`client` is None).

    Attributes:
        base_round: the round of the global model that it started from.
        chunk: of that round.
        client: None where the update stands for all clients of the chunk.
        num_clients: how many clients it stands for.
        num_examples: how many examples they trained on.
        metrics: what was measured, each the mean over these examples.
        node: that sent it, as its connection proved; empty on the node itself.
        digest: blake3 of the file that holds the arrays; empty before it is written.
        size: of that file, in bytes.
    """

    base_round: _Number
    chunk: _Number
    client: _Number | None = None
    num_clients: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    num_examples: Annotated[int, Field(ge=1, le=10**12)]
    metrics: Annotated[dict[Name, FiniteFloat], Field(default_factory=dict, max_length=MAX_METRICS)]
    node: Name | None = None
    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    size: Count = 0
    # Private, so that no message can contain it.
    _arrays: Arrays = PrivateAttr(default_factory=dict)

    @property
    def arrays(self) -> Arrays:
        """The arrays by name; empty where a file holds them."""
        return self._arrays

    @property
    def place(self) -> tuple[int, int]:
        """Where it comes in the canonical order of its round's updates."""
        return self.chunk, -1 if self.client is None else self.client

    def with_arrays(self, arrays: Arrays) -> Self:
        """The same update with these arrays in memory."""
        copy = self.model_copy()
        copy._arrays = arrays  # noqa: SLF001 - of the same class
        return copy

    def stored(self, digest: str, size: int) -> Self:
        """The same update once a file holds its arrays."""
        return self.model_copy(update={"digest": digest, "size": size}).with_arrays({})


def mean_metric(updates: Iterable[Update], name: str) -> float | None:
    """A metric's mean over the examples of the updates that report it; None if none does."""
    total, num_examples = 0.0, 0
    for update in updates:
        if name in update.metrics:
            total += update.metrics[name] * update.num_examples
            num_examples += update.num_examples
    return total / num_examples if num_examples else None
