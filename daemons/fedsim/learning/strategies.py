"""The aggregation algorithms, each on one screen.

A strategy has two sides. `adjust_gradients` is what the client's objective adds to its loss. `combine` and `step` are
the server's: they see a block of consecutive parameters of every update, never a whole model, so that a strategy costs
the same memory for one client and for ten thousand. Blocks are float64 inside, float32 at rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.learning.examples import FloatArray
from fedsim.settings import TaskSettings
from fedsim.update import PARAMETERS

if TYPE_CHECKING:
    from torch import Tensor

Block = NDArray[np.float64]


class Strategy:
    """What all strategies share: a weighted mean, taken as the new model. This is FedAvg (McMahan et al. 2017).

    Attributes:
        needs_each_client: the server must see each client's update; else a chunk's weighted mean stands for it.
        uplink_arrays: the arrays of an update, each as long as the model, in their order in its file.
        state_names: vectors, as long as the model, that the server keeps from round to round; zeros before round 1.
    """

    needs_each_client: ClassVar[bool] = False
    uplink_arrays: ClassVar[tuple[str, ...]] = (PARAMETERS,)
    state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: TaskSettings) -> None:
        self.weighting = settings.weighting

    def weight(self, num_examples: int, num_clients: int = 1) -> float:
        """What an update counts that stands for some clients with so many examples in all."""
        return float(num_examples if self.weighting == "examples" else num_clients)

    def adjust_gradients(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], received: Sequence[Tensor]
    ) -> None:
        """Add to a step's gradients, in place; `received` are the parameters of the round's global model."""

    def combine(self, updates: Iterable[FloatArray], weights: Sequence[float]) -> Block:
        """From each update's block (float32 [b], in canonical order) to one: the weighted mean, float64 [b]."""
        total: Block | None = None
        for update, weight in zip(updates, weights, strict=True):
            weighted = np.multiply(update, weight, dtype=np.float64)
            total = weighted if total is None else np.add(total, weighted, out=total)
        if total is None:
            raise ValueError("there is nothing to combine")
        return np.divide(total, sum(weights), out=total)

    def step(self, received: Block, combined: Block, state: Mapping[str, Block]) -> tuple[Block, dict[str, Block]]:  # noqa: ARG002
        """From the old model's block and the combined one to the new model's, and the new state's."""
        return combined, {}


class FedAvg(Strategy):
    """The weighted mean of the clients' parameters (McMahan et al. 2017, algorithm 1)."""


class FedProx(Strategy):
    """FedAvg whose clients are pulled to the global model: loss + mu/2 · |w - w_global|² (Li et al. 2020, eq. 2)."""

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        self.mu = settings.proximal_mu

    def adjust_gradients(
        self, gradients: Sequence[Tensor], parameters: Sequence[Tensor], received: Sequence[Tensor]
    ) -> None:
        """Add the proximal term's gradient, mu · (w - w_global)."""
        for gradient, parameter, anchor in zip(gradients, parameters, received, strict=True):
            gradient.add_(parameter - anchor, alpha=self.mu)


class FedAvgM(Strategy):
    """FedAvg with momentum on the server (Hsu et al. 2019, section 4.3): v ← β·v + Δ, w ← w - η·v."""

    state_names = ("momentum",)

    def __init__(self, settings: TaskSettings) -> None:
        super().__init__(settings)
        self.learning_rate = settings.server_learning_rate
        self.momentum = settings.server_momentum

    def step(self, received: Block, combined: Block, state: Mapping[str, Block]) -> tuple[Block, dict[str, Block]]:
        """Δ is how far the clients' mean lies from the model that they received."""
        velocity = self.momentum * state["momentum"] + (received - combined)
        return received - self.learning_rate * velocity, {"momentum": velocity}


class Median(Strategy):
    """The coordinate-wise median of the clients' parameters (Yin et al. 2018, algorithm 1); all clients count alike."""

    needs_each_client = True

    def combine(self, updates: Iterable[FloatArray], weights: Sequence[float]) -> Block:  # noqa: ARG002
        """The middle value; of an even number the mean of the two middle ones."""
        stacked = np.stack(list(updates)).astype(np.float64)
        return np.asarray(np.median(stacked, axis=0, overwrite_input=True), np.float64)


STRATEGIES: dict[str, type[Strategy]] = {"fedavg": FedAvg, "fedprox": FedProx, "fedavgm": FedAvgM, "median": Median}


def make_strategy(settings: TaskSettings) -> Strategy:
    """The strategy that the settings name, with its parameters."""
    return STRATEGIES[settings.strategy](settings)
