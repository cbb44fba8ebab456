"""An update: what a client, or a chunk of clients, contributes to a round.

One type carries it from the engine that trained it to the aggregation that uses it. Its arrays are in memory while it
is computed; once they are written, the file with this digest holds them, and daemons handle the rest alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self

from numpy.typing import NDArray
from pydantic import Field, PrivateAttr

from fedsim.messages import Count, Message, Name

Arrays = Mapping[str, NDArray[Any]]
"""Arrays by name: float32, unless a transform has encoded them to be sent (see `fedsim.array_layout`)."""
PARAMETERS = "parameters"
"""The array that every update contains: the model's parameters after training."""
PERSONAL = "personal"
"""What a client keeps of a model of which it has tensors of its own: its personal vector, float32 [Q]."""
PERSONAL_ROUNDS = "personal_rounds"
"""In how many rounds a client has trained its personal vector, float32 [1]; 0: it still has none."""
TRAIN_LOSS = "train_loss"
"""The metric that every engine reports: the mean loss over all training steps."""
UPDATE_NORM = "update_norm"
"""A metric of what clients train: the L2 norm by which a client moved the parameters."""
EFFECTIVE_STEPS = "effective_steps"
"""A metric for strategies that declare it: how many plain gradient steps those of a client count for."""
MAX_METRICS = 100
MAX_METRIC = 1e39
"""Beyond every float32, in which losses are computed; the sum over any number of examples stays finite."""
MAX_CLIENT_FIGURES = 200
"""Most clients of whom an update names figures: they travel in the header of its file."""
_Number = Annotated[int, Field(ge=0, le=1_000_000)]
_Metric = Annotated[float, Field(ge=-MAX_METRIC, le=MAX_METRIC, allow_inf_nan=False)]


class ClientFigures(Message):
    """What a node lets be known of a single client's training: its examples, mean loss, and the norm of its update."""

    client: _Number
    num_examples: Annotated[int, Field(ge=1, le=10**12)]
    loss: _Metric
    norm: Annotated[_Metric, Field(ge=0)]


class Update(Message):
    """An update of one client, or of the `num_clients` clients of a chunk (`client` is None).

    Attributes:
        base_round: the round of the global model that it started from.
        chunk: of that round.
        client: None if the update represents all clients of the chunk.
        num_clients: the number of clients that it represents.
        num_examples: how many examples they trained on.
        metrics: name -> mean over these examples.
        client_figures: of single clients, where the institution allows it.
        node: the authenticated sender; None on the node itself.
        digest: blake3 of the file that holds the arrays; empty before it is written.
        size: of that file, in bytes.
        base_digest: of the file with the global model that it started from; empty before it is written.
        frozen_digest: of the model's frozen tensors on the node, which are sent nowhere; empty if there are none.
    """

    base_round: _Number
    chunk: _Number = 0
    client: _Number | None = None
    num_clients: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    num_examples: Annotated[int, Field(ge=1, le=10**12)]
    metrics: Annotated[dict[Name, _Metric], Field(default_factory=dict, max_length=MAX_METRICS)]
    client_figures: Annotated[tuple[ClientFigures, ...], Field(max_length=MAX_CLIENT_FIGURES)] = ()
    node: Name | None = None
    digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    size: Count = 0
    base_digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    frozen_digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    # Private, so that no message can contain them.
    _arrays: Arrays = PrivateAttr(default_factory=dict)
    _client_state: Arrays = PrivateAttr(default_factory=dict)

    @property
    def arrays(self) -> Arrays:
        """The arrays by name; empty where a file holds them."""
        return self._arrays

    @property
    def client_state(self) -> Arrays:
        """The state that the client keeps for its next round; it never leaves the node."""
        return self._client_state

    @property
    def place(self) -> tuple[int, int]:
        """Its key in the canonical order of the round's updates."""
        return self.chunk, -1 if self.client is None else self.client

    def with_arrays(self, arrays: Arrays) -> Self:
        """The same update with these arrays in memory."""
        copy = self.model_copy()
        copy._arrays = arrays  # noqa: SLF001 - of the same class
        return copy

    def copied(self) -> Self:
        """The same update with arrays and client state of its own: an engine's are valid for a moment only."""
        arrays, state = (
            {name: array.copy() for name, array in held.items()} for held in (self.arrays, self.client_state)
        )
        return self.with_arrays(arrays).with_client_state(state)

    def with_client_state(self, state: Arrays) -> Self:
        """The same update with this state of its client in memory."""
        copy = self.model_copy()
        copy._client_state = state  # noqa: SLF001 - of the same class
        return copy

    def with_norm(self, norm: float, least_shown: int | None) -> Self:
        """A client's update with the norm by which it moved the received parameters.

        With `least_shown` examples or more the figures are also those of this single client; None: never.
        """
        shown: tuple[ClientFigures, ...] = ()
        if least_shown is not None and self.client is not None and self.num_examples >= least_shown:
            loss = self.metrics[TRAIN_LOSS]
            shown = (ClientFigures(client=self.client, num_examples=self.num_examples, loss=loss, norm=norm),)
        return self.model_copy(update={"metrics": {**self.metrics, UPDATE_NORM: norm}, "client_figures": shown})

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


def mean_metrics(updates: Sequence[Update]) -> dict[str, float]:
    """`mean_metric` of every metric that one of the updates reports."""
    names = dict.fromkeys(name for update in updates for name in update.metrics)
    return {name: mean for name in names if (mean := mean_metric(updates, name)) is not None}


def of_chunk(updates: Sequence[Update]) -> Update:
    """The update that represents all clients of `updates`, those of a chunk, without arrays."""
    return (
        updates[0]
        .model_copy(
            update={
                "client": None,
                "num_clients": len(updates),
                "num_examples": sum(update.num_examples for update in updates),
                "metrics": mean_metrics(updates),
                "client_figures": tuple(one for each in updates for one in each.client_figures)[:MAX_CLIENT_FIGURES],
            }
        )
        .with_arrays({})
    )
