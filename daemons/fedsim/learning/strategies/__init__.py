"""Strategies: what clients minimise, how their updates become one, and how the server moves the model with it.

A strategy is one class in one file. It has three parts, each of which can come from another strategy
(`aggregation` and `server_step` of the task's settings):

1. the client's: `adjust_gradients`, the gradient of what the strategy adds to the loss, and `finish_client`, what the
   client sends besides its parameters (`uplink_arrays`) and keeps for its next round (`client_state`);
2. the rule that combines: `uplink`, `weight`, `prepare` and `combine`;
3. the server's step: `server_state` and `step`; `downlink_arrays` of the state go down to the clients with the model.

The rule and the step see a block of consecutive parameters of every update, never a complete model, so that a strategy
takes the same memory for one client and for ten thousand. Blocks are float64 in memory, float32 at rest.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.errors import BadInput
from fedsim.learning.buffering import Buffering
from fedsim.learning.examples import FloatArray
from fedsim.learning.optimizers import make_optimizer
from fedsim.learning.phases import Phase
from fedsim.messages import Uplink
from fedsim.plugins import Plugin, PluginOptions, gettext_noop
from fedsim.settings import TaskSettings
from fedsim.update import PARAMETERS

if TYPE_CHECKING:
    from torch import Tensor, nn

Block = NDArray[np.float64]
BlockFunction = Callable[[Sequence[FloatArray], Block], Block]
"""What a pass computes from one block: each update's part (float32 [b]) and the received model's (float64 [b])."""
Passes = Generator[BlockFunction, Block, Any]

Parts = Sequence["Tensor"]
"""A vector as long as the model, as one tensor for each of the model's shared parameters."""


class TrainedPart(StrEnum):
    """Parameters that an epoch trains."""

    ALL = "all"
    SHARED = "shared"
    PERSONAL = "personal"


__all__ = [
    "Block",
    "BlockFunction",
    "ClientRound",
    "Parts",
    "Passes",
    "StepContext",
    "Strategy",
    "TrainedPart",
    "Uplink",
    "Weighted",
    "make_strategy",
    "weighted_mean",
]


@dataclass(frozen=True)
class ClientRound:
    """What a strategy knows of a client's round besides its parameters.

    Attributes:
        received: the strategy's `downlink_arrays`, from the server.
        state: the client's `client_state`; zeros in its first round.
        num_steps: gradient steps in the round.
        effective_steps: plain gradient steps that they count for, see `Optimizer.effective_steps`; None: unknown.
        learning_rate: of each step.
    """

    received: Mapping[str, Parts]
    state: Mapping[str, Parts]
    num_steps: int
    learning_rate: float
    effective_steps: float | None = None


@dataclass(frozen=True)
class StepContext:
    """What the rule and the server's step know of their round besides the updates.

    Attributes:
        round: counted from 1.
        num_clients: clients whose updates were combined.
        population: clients of the task.
        seed: the task's, for `generator`.
        metrics: of the updates that count, each the mean over their examples; none is larger than the task allows.
        arrays: a block of each further array of the updates, combined; float64 [b]. Only the step has them.
        discount: the mean of the updates' `staleness_weight` over their clients.
    """

    round: int
    num_clients: int
    population: int
    seed: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, Block] = field(default_factory=dict)
    discount: float = 1.0


class Strategy(Plugin):
    """The base of all strategies; as it is, it combines by the weighted mean and takes that as the new model.

    Attributes:
        uplink: `SUM`: a node may send one weighted mean for a chunk of clients. `EACH_CLIENT`: the rule needs the
            update of each client.
        needs_effective_steps: whether the client's part works only with optimizers whose steps add up gradients; with
            another one the task is refused.
        uplink_arrays: the arrays of an update, each as long as the model, in their order in its file. The rule combines
            each of them.
        uplink_metrics: metrics of the updates, besides the loss, that the server's step needs: `EFFECTIVE_STEPS`.
        server_state: names of the vectors, as long as the model, that the server keeps from round to round; zeros
            before round 1.
        downlink_arrays: those of `server_state` that the clients receive with the model.
        client_state: names of the vectors, as long as the model, that each client keeps on its node from round to
            round; zeros before its first round.
        personal_model: whether each client also trains and keeps a whole model, see `adjust_personal_gradients`.
        phases: that it adds to a task.
        buffering: of asynchronous rounds; None: a round waits for its cohort. The clients send what does not depend on
            the newest model, such as differences, because the server combines updates of several rounds.
    """

    uplink: Uplink = Uplink.SUM
    needs_effective_steps: bool = False
    uplink_arrays: tuple[str, ...] = (PARAMETERS,)
    uplink_metrics: tuple[str, ...] = ()
    server_state: tuple[str, ...] = ()
    downlink_arrays: tuple[str, ...] = ()
    client_state: tuple[str, ...] = ()
    personal_model: bool = False
    phases: tuple[Phase, ...] = ()
    buffering: Buffering | None = None

    # ------------------------------------------------------------ 1. the client's part

    @property
    def trains_plainly(self) -> bool:
        """Whether it leaves gradients as they are and has nothing to finish, so that an engine need not ask."""
        methods = (self.adjust_gradients, Strategy.adjust_gradients), (self.finish_client, Strategy.finish_client)
        return not self.personal_model and all(getattr(method, "__func__", None) is base for method, base in methods)

    def adjust_gradients(self, gradients: Parts, parameters: Parts, received: Parts, client: ClientRound) -> None:
        """Add to a step's gradients, in place; `received` are the parameters of the round's global model."""

    def adjust_personal_gradients(
        self, gradients: Parts, parameters: Parts, received: Parts, client: ClientRound
    ) -> None:
        """As `adjust_gradients`, for the whole model that a client keeps."""

    def finish_client(
        self,
        parameters: Parts,  # noqa: ARG002
        received: Parts,  # noqa: ARG002
        client: ClientRound,  # noqa: ARG002
    ) -> tuple[dict[str, Parts], dict[str, Parts]]:
        """From the trained parameters to the further `uplink_arrays`, and the client's new `client_state`.

        With `PARAMETERS` among the arrays, these are sent in place of the trained ones.
        """
        return {}, {}

    def clients_keep_state(self, settings: TaskSettings) -> bool:
        """Whether clients keep anything from round to round: a `client_state`, personal tensors, or statistics."""
        kept = self.client_state or self.personal_model or settings.statistics == "local"
        return bool(kept) or getattr(self.personal_tensors, "__func__", None) is not Strategy.personal_tensors

    def personal_tensors(self, model: nn.Module) -> frozenset[str]:  # noqa: ARG002
        """The names of the parameters and float buffers that stay with each client, as `state_dict` names them.

        They are in no file that is sent. Each client begins with them as initialised, and keeps them on its node.

        Raises:
            BadInput: the model lacks what the strategy needs.
        """
        return frozenset()

    def trains(self, epoch: int, num_epochs: int) -> TrainedPart:  # noqa: ARG002
        """The parameters that an epoch of a client's round trains; `epoch` counts from 0."""
        return TrainedPart.ALL

    @property
    def least_epochs(self) -> int:
        """The least number of local epochs."""
        return 1

    # ------------------------------------------------------------ 2. the rule that combines

    @property
    def least_updates(self) -> int:
        """Of fewer updates the rule promises nothing: a smaller cohort is refused, and a round waits for so many."""
        return 1

    def weight(self, num_examples: int, num_clients: int) -> float:  # noqa: ARG002
        """The weight of an update of `num_clients` clients with `num_examples` examples in all."""
        return float(num_examples)

    def staleness_weight(self, staleness: int) -> float:  # noqa: ARG002
        """s(τ): by what the weight of an update is multiplied that began τ rounds before the one that uses it."""
        return 1.0

    def prepare(self, weights: Sequence[float], context: StepContext) -> Passes:  # noqa: ARG002
        """Passes over all updates before `combine`: distances, norms, a choice of updates.

        Yield a function of one block; the value of the `yield` is the sum of what it returns over all blocks, in
        order. The generator's return value is handed to `combine`. Any number of passes is possible.

        Args:
            weights: of the updates, in canonical order.
            context: of the round.
        """
        yield from ()
        return None

    def combine(self, updates: Sequence[FloatArray], weights: Sequence[float], received: Block, prepared: Any) -> Block:  # noqa: ARG002
        """Combine a block of all updates.

        Args:
            updates: float32 [b] each, in canonical order.
            weights: one for each update.
            received: float64 [b], the model that the clients received; zeros for any other of the `uplink_arrays`.
            prepared: what `prepare` returned, which has only seen the parameters.

        Returns:
            float64 [b].
        """
        return weighted_mean(updates, weights)

    # ------------------------------------------------------------ 3. the server's step

    def step(
        self,
        received: Block,  # noqa: ARG002
        combined: Block,
        state: Mapping[str, Block],  # noqa: ARG002
        context: StepContext,  # noqa: ARG002
    ) -> tuple[Block, dict[str, Block]]:
        """From the received model's block and the combined one to the new model's, and the new server state's."""
        return combined, {}


class Weighted(Strategy):
    """A strategy whose updates are weighted according to the option `weighting`."""

    class Options(PluginOptions):
        """What a client's update counts."""

        weighting: Literal["examples", "uniform"] = Field(
            "examples",
            title=gettext_noop("Weighting"),
            description=gettext_noop("A client's weight: its number of examples, or the same for each client."),
        )

    options: Options

    def weight(self, num_examples: int, num_clients: int) -> float:
        """The number of examples, or of clients."""
        return float(num_examples if self.options.weighting == "examples" else num_clients)


def weighted_mean(updates: Iterable[FloatArray], weights: Sequence[float]) -> Block:
    """The weighted mean, float64 [b], summed in the order given."""
    total: Block | None = None
    weighted = np.empty(0)
    for update, weight in zip(updates, weights, strict=True):
        # Converted first: a ufunc that converts does so in small pieces, which takes half as long again.
        if total is None:
            total, weighted = np.array(update, np.float64), np.empty(len(update))
            total *= weight
        else:
            np.copyto(weighted, update)
            weighted *= weight
            total += weighted
    if total is None:
        raise ValueError("no updates to combine")
    total /= sum(weights)
    return total


def make_strategy(settings: TaskSettings) -> Strategy:
    """The strategy that the settings name; `aggregation` and `server_step` replace two of its parts.

    Raises:
        BadInput: one of them is not installed, does not take the options given for it, needs an array that another
            does not give, or does not work with the optimizer.
    """
    strategy: Strategy = settings.plugin("strategy")
    if strategy.needs_effective_steps and make_optimizer(settings).effective_steps(1) is None:
        raise BadInput(
            f"{settings.strategy} computes with the gradients that a client's steps add up, which those of "
            f"{settings.optimizer} with these options are not: choose sgd, plain or with momentum"
        )
    if strategy.least_epochs > 1 and settings.max_steps:
        raise BadInput(f"{settings.strategy} divides a client's round by epochs: set max_steps to 0")
    if settings.local_epochs < strategy.least_epochs:
        raise BadInput(
            f"{settings.strategy} needs at least {strategy.least_epochs} local_epochs with these options, not "
            f"{settings.local_epochs}: raise local_epochs, or change the options"
        )
    if not settings.aggregation and not settings.server_step:
        return strategy
    rule: Strategy = settings.plugin("aggregation") if settings.aggregation else strategy
    server: Strategy = settings.plugin("server_step") if settings.server_step else strategy
    server_name = settings.server_step or settings.strategy
    if strategy.buffering or rule.buffering or server.buffering:
        parts = dict.fromkeys(filter(None, (settings.strategy, settings.aggregation, settings.server_step)))
        raise BadInput(f"{', '.join(parts)}: the parts of a strategy with asynchronous rounds cannot be combined")
    from fedsim.learning.composed_strategy import ComposedStrategy  # noqa: PLC0415 - which is a Strategy

    for needs, name, gives, arrays in (
        (settings.strategy, server_name, "the server step", set(strategy.downlink_arrays) - set(server.server_state)),
        (server_name, settings.strategy, "the strategy", set(server.uplink_arrays) - set(strategy.uplink_arrays)),
    ):
        if arrays:
            missing = ", ".join(sorted(arrays))
            raise BadInput(f"{needs} needs the array {missing}, which {gives} {name} does not give: combine others")
    return ComposedStrategy(strategy, rule, server)


def check_cohort(strategy: Strategy, settings: TaskSettings) -> None:
    """Check that the cohort of a round is as large as the task's rule needs; raises `BadInput` if it is not."""
    if settings.cohort_size < strategy.least_updates:
        name = settings.aggregation or settings.strategy
        raise BadInput(
            f"{name} needs the updates of at least {strategy.least_updates} clients in each round with these options, "
            f"and a round has {settings.cohort_size}: raise num_clients or fraction_train, or choose fewer attackers"
        )
