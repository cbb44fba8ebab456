"""What nodes and clients contributed to a round: training loss, norm of the update, and drift from the mean.

Of u, the parameters after training, and w, the received ones, the update is u - w. The mean is that of the updates that
count, by their weights, before the server's step. Drift is how far an update is from it: local training leads each
client towards its own optimum, which is the client drift of Karimireddy et al. 2020 ("SCAFFOLD", section 3.2). It is
measured here as

- `distance`: the L2 norm of the update minus the mean update, whose square, in the mean over updates, is the variance
  that bounds of local SGD contain (Khaled et al. 2020, "Tighter theory for local SGD"); divided by the norm of the
  mean it is 0 for equal updates and of the order of 1 for unrelated ones;
- `cosine`: of the angle between the update and the mean update.

With `aggregation` rules that choose among updates, such as `krum`, the mean is not what the model became.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fedsim.learning.examples import FloatArray
from fedsim.learning.strategies import Strategy
from fedsim.update import PARAMETERS, TRAIN_LOSS, UPDATE_NORM, Update, mean_metric

Rows = NDArray[np.float64]
BLOCK = 2**18
"""Numbers in memory at once, float64."""


class Contribution(BaseModel):
    """The figures of one node, or of one client; None: not known, or not finite.

    `client_norm` is the mean norm of the updates of a node's clients, weighted by their examples; it is unknown where
    an engine computes a chunk's mean without them.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    node: str = ""
    num_clients: int = 1
    num_examples: int
    loss: float | None = None
    client_norm: float | None = None
    norm: float | None = None
    distance: float | None = None
    cosine: float | None = None


class Contributions(BaseModel):
    """The figures of a round by node, and by client where they are known; `norm` is that of the mean update."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    norm: float | None = None
    nodes: dict[str, Contribution] = {}
    clients: dict[int, Contribution] = {}


NO_CONTRIBUTIONS = Contributions()
"""Of round 0."""


def name_of_node(update: Update) -> str:
    """The node that sent an update."""
    return update.node or ""


def measure_contributions(
    strategy: Strategy,
    received: FloatArray,
    updates: Sequence[Update],
    node_of: Callable[[Update], str] = name_of_node,
    *,
    drift: bool = True,
) -> Contributions:
    """Measure what a round's updates contributed, with `drift` in one pass over their parameters, block by block.

    A client has figures of its own where its node let them leave (`Update.client_figures`). Drift of a client is known
    where the strategy needs the update of each.

    Args:
        strategy: weighs the updates.
        received: float32 [P], the model that the clients received.
        updates: those that count, with their arrays, in canonical order.
        node_of: the node of an update.
        drift: whether norms, distances and cosines are computed. For that each update is read once more, so that a
            task does it only in the rounds that it tests.
    """
    nodes = list(dict.fromkeys(map(node_of, updates)))
    single = [number for number, update in enumerate(updates) if update.client is not None and update.client_figures]
    rows = np.zeros((len(nodes) + len(single), len(updates)))
    for number, update in enumerate(updates):
        rows[nodes.index(node_of(update)), number] = strategy.weight(update.num_examples, update.num_clients)
    for row, number in enumerate(single, len(nodes)):
        rows[row, number] = 1.0
    total = rows[: len(nodes)].sum()
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        measured = _measure(rows, len(nodes), total, None if strategy.buffering else received, updates, drift=drift)
    norm, norms, distances, cosines = measured
    found: dict[str, Contribution] = {}
    for row, node in enumerate(nodes):
        here = [update for update in updates if node_of(update) == node]
        found[node] = Contribution(
            node=node,
            num_clients=sum(update.num_clients for update in here),
            num_examples=sum(update.num_examples for update in here),
            loss=mean_metric(here, TRAIN_LOSS),
            client_norm=mean_metric(here, UPDATE_NORM),
            norm=norms[row],
            distance=distances[row],
            cosine=cosines[row],
        )
    measured_rows = {number: row for row, number in enumerate(single, len(nodes))}
    clients: dict[int, Contribution] = {}
    for number, update in enumerate(updates):
        for own in update.client_figures:
            known = Contribution(node=node_of(update), num_examples=own.num_examples, loss=own.loss, norm=own.norm)
            if (at := measured_rows.get(number)) is not None:
                seen = {"norm": norms[at], "distance": distances[at], "cosine": cosines[at]}
                known = known.model_copy(update=seen)
            clients[own.client] = known
    return Contributions(norm=norm, nodes=found, clients=clients)


def _measure(
    rows: Rows,
    num_nodes: int,
    total: float,
    received: FloatArray | None,
    updates: Sequence[Update],
    *,
    drift: bool,
) -> tuple[float | None, list[float | None], list[float | None], list[float | None]]:
    """The norm of the mean update; of each row its norm, its distance from the mean, and its cosine to it.

    Args:
        rows: float64 [r, u], the weights of the updates in each row; those of the nodes come first.
        num_nodes: how many these are.
        total: the sum of their weights.
        received: float32 [P]; None: the updates hold changes.
        updates: u of them, with their arrays.
        drift: whether to compute anything; else nothing is known.
    """
    if not drift:
        nothing: list[float | None] = [None] * len(rows)
        return None, nothing, nothing, nothing
    weights = rows.sum(axis=1)
    squares, products, distances = (np.zeros(len(rows)) for _ in range(3))
    square = 0.0
    block = max(1, BLOCK // (2 * len(rows) + 4))
    size = updates[0].arrays[PARAMETERS].size
    for start in range(0, size, block):
        here = slice(start, min(start + block, size))
        length = here.stop - start
        before = np.zeros(length) if received is None else received[here].astype(np.float64)
        sums = np.zeros((len(rows), length))
        for number, update in enumerate(updates):
            trained = update.arrays[PARAMETERS][here].astype(np.float64)
            for place in np.flatnonzero(rows[:, number]):
                sums[place] += rows[place, number] * trained
        mean = sums[:num_nodes].sum(axis=0) / total - before
        moved = sums / weights[:, None] - before
        square += _dot(mean, mean)
        for row, one in enumerate(moved):
            apart = one - mean
            squares[row] += _dot(one, one)
            products[row] += _dot(one, mean)
            distances[row] += _dot(apart, apart)
    norm, norms = sqrt(square), np.sqrt(squares)
    lengths = norms * norm
    cosines = np.divide(products, lengths, out=np.full(len(rows), np.nan), where=lengths > 0)
    return (
        _finite(norm),
        [_finite(value) for value in norms.tolist()],
        [_finite(value) for value in np.sqrt(distances).tolist()],
        [_finite(value) for value in np.clip(cosines, -1, 1).tolist()],
    )


def _dot(one: Rows, other: Rows) -> float:
    """The scalar product; einsum sums in one order, whatever number of threads BLAS would use."""
    return float(np.einsum("i,i->", one, other))


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
