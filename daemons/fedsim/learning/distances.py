"""Scalar products of updates, in passes over blocks of their parameters: distances follow from them.

Everything is relative to the model that the clients received, so that small differences of large parameters keep their
digits. Sums run in one order, whatever number of threads BLAS would use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedsim.learning.examples import FloatArray
from fedsim.learning.strategies import Block


def dot(one: Block, other: Block) -> float:
    """The scalar product of two vectors, float64 [b]."""
    return float(np.einsum("i,i->", one, other))


def products(updates: Sequence[FloatArray], received: Block) -> Block:
    """The scalar products of all pairs of `update - received` in one block: float64 [n, n]; a pass of `prepare`.

    Args:
        updates: float32 [b] each.
        received: float64 [b].
    """
    moved = [np.subtract(update, received) for update in updates]
    found = np.empty((len(moved), len(moved)))
    for number, one in enumerate(moved):
        for other in range(number + 1):
            found[number, other] = found[other, number] = dot(one, moved[other])
    return found


def squared_distances(found: Block) -> Block:
    """The squared distances of all pairs, float64 [n, n], from their `products`."""
    squares = np.diagonal(found)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * found, 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances
