"""From a round's updates to the next global model, block by block over arrays that are memory-mapped in production.

Memory depends on neither the model's size nor the number of clients; sums are float64, in the order given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from blake3 import blake3

from fedsim.array_layout import Layout
from fedsim.errors import BadInput
from fedsim.learning.examples import FloatArray
from fedsim.learning.optimizers import make_optimizer
from fedsim.learning.strategies import Block, Passes, StepContext, Strategy, Uplink
from fedsim.settings import TaskSettings
from fedsim.update import EFFECTIVE_STEPS, PARAMETERS, PERSONAL, PERSONAL_ROUNDS, Update, mean_metrics

BLOCK = 2**16
"""Parameters in a block where updates are summed one after another: 512 KiB of float64, which stays in the cache."""
STACKED_BLOCK = 2**22
"""Parameters of all updates together where a strategy needs them side by side."""


@dataclass(frozen=True)
class SharedStatistics:
    """The last `count` numbers of a flat vector are statistics; if they are `frozen`, rounds leave them as they are."""

    count: int
    frozen: bool = False


def aggregate(
    strategy: Strategy,
    global_vector: FloatArray,
    updates: Sequence[FloatArray],
    weights: Sequence[float],
    state: Mapping[str, FloatArray],
    out: FloatArray,
    state_out: Mapping[str, FloatArray],
    *,
    arrays: Mapping[str, Sequence[FloatArray]] | None = None,
    context: StepContext | None = None,
    block: int | None = None,
    statistics: SharedStatistics | None = None,
) -> bool:
    """Compute the next global model and strategy state.

    Args:
        strategy: the rule.
        global_vector: float32 [P], the model that the clients received.
        updates: the parameters, float32 [P] each, in canonical order: chunk after chunk, or client after client.
        weights: one for each update, from `Strategy.weight`.
        state: float32 [P] for each vector of the strategy's `server_state`; `initial_state` before round 1.
        out: float32 [P], written.
        state_out: like `state`, written; must not be the same arrays.
        arrays: further arrays of the updates, each like `updates`.
        context: of the round; None: the first one, in which each update is one client's and all clients take part.
        block: parameters at a time in `combine` and `step`; any value gives the same bytes. The passes of
            `Strategy.prepare` use blocks of a fixed size, because they sum over blocks.
        statistics: which of the numbers are statistics: they become what the rule combines, and the server takes no
            step with them. None: none are.

    Returns:
        Whether every new parameter, and every number of the state, is finite.

    Raises:
        BadInput: an update's length is not the model's, or no update has weight.
    """
    size = len(global_vector)
    arrays = arrays or {}
    for number, update in enumerate(updates):
        for array in (update, *(given[number] for given in arrays.values())):
            if array.shape != (size,):
                raise BadInput(
                    f"update {number} has the shape {array.shape}, the model has {size} parameters; leave it out"
                )
    if len(weights) != len(updates) or not sum(weights) > 0:
        raise BadInput(f"{len(updates)} updates with the weights {list(weights)[:10]} cannot be combined")
    stacked = max(1, STACKED_BLOCK // len(updates))
    if block is None:
        block = stacked if strategy.uplink == Uplink.EACH_CLIENT else BLOCK
    context = context or StepContext(1, len(updates), len(updates))
    with np.errstate(over="ignore", invalid="ignore"):  # not finite is an answer, not an accident
        prepared = run_passes(strategy.prepare(weights, context), global_vector, updates, stacked)
    finite = True
    for start in range(0, size, block):
        here = slice(start, start + block)
        with np.errstate(over="ignore", invalid="ignore"):
            received = global_vector[here].astype(np.float64)
            combined = strategy.combine([update[here] for update in updates], weights, received, prepared)
            old_state = {name: state[name][here].astype(np.float64) for name in strategy.server_state}
            combined_arrays = {
                name: strategy.combine([array[here] for array in given], weights, np.zeros_like(received), prepared)
                for name, given in arrays.items()
            }
            here_context = replace(context, arrays=combined_arrays) if arrays else context
            new, new_state = strategy.step(received, combined, old_state, here_context)
            if statistics is not None and (first := max(0, size - statistics.count - start)) < len(received):
                new = np.concatenate([new[:first], (received if statistics.frozen else combined)[first:]])
                new_state = {
                    name: np.concatenate([new_state[name][:first], old_state[name][first:]])
                    for name in strategy.server_state
                }
            out[here] = new
            for name in strategy.server_state:
                state_out[name][here] = new_state[name]
        finite &= all(bool(np.isfinite(made[here]).all()) for made in (out, *state_out.values()))
    return finite


def run_passes(passes: Passes, global_vector: FloatArray, updates: Sequence[FloatArray], block: int) -> Any:
    """Run passes, as those of `Strategy.prepare`, over all blocks; returns what their generator returns.

    Args:
        passes: the generator of the functions of a block.
        global_vector: float32 [P], the model that the clients received.
        updates: float32 [P] each, in canonical order.
        block: parameters at a time; a pass sums over blocks, so that it decides the last bits of the sum.
    """
    try:
        function = next(passes)
        while True:
            total: Block | None = None
            for start in range(0, len(global_vector), block):
                here = slice(start, start + block)
                part = function([update[here] for update in updates], global_vector[here].astype(np.float64))
                total = np.asarray(part, np.float64) if total is None else total + part
            function = passes.send(np.zeros(0) if total is None else total)
    except StopIteration as end:
        return end.value


def initial_state(strategy: Strategy, size: int) -> dict[str, FloatArray]:
    """A strategy's state before round 1: zeros, float32 [size] for each of its `server_state`."""
    return {name: np.zeros(size, np.float32) for name in strategy.server_state}


def uplink_layout(strategy: Strategy, size: int) -> Layout:
    """The layout of an update's file for a model of `size` parameters: the strategy's arrays, each that long."""
    return Layout(dict.fromkeys(strategy.uplink_arrays, (size,)))


def downlink_layout(strategy: Strategy, size: int) -> Layout:
    """The layout of what clients receive: the model's parameters, then the strategy's arrays, each that long."""
    return Layout(dict.fromkeys((PARAMETERS, *strategy.downlink_arrays), (size,)))


def client_layout(strategy: Strategy, size: int, personal: int = 0) -> Layout:
    """The layout of what a client keeps from round to round; `personal` is the length of its personal vector."""
    own = {PERSONAL: (personal,), PERSONAL_ROUNDS: (1,)} if personal else {}
    return Layout({**dict.fromkeys(strategy.client_state, (size,)), **own})


def split_received(strategy: Strategy, vector: FloatArray) -> tuple[FloatArray, dict[str, FloatArray]]:
    """The model's parameters and the strategy's arrays in what a client received, without a copy."""
    size, rest = divmod(len(vector), 1 + len(strategy.downlink_arrays))
    if rest:
        raise BadInput(f"{len(vector)} numbers cannot be divided into {1 + len(strategy.downlink_arrays)} arrays")
    views = downlink_layout(strategy, size).views(vector)
    return views.pop(PARAMETERS), views


def weights_of(strategy: Strategy, number: int, updates: Iterable[Update]) -> list[float]:
    """The weights of the updates that round `number` uses."""
    return [
        strategy.weight(update.num_examples, update.num_clients) * strategy.staleness_weight(number - update.base_round)
        for update in updates
    ]


def round_context(
    settings: TaskSettings, number: int, updates: Sequence[Update], strategy: Strategy | None = None
) -> StepContext:
    """What the rule and the server's step know of round `number`, whose updates count.

    The `strategy` says what stale updates count; without one all count as new ones.
    Steps that nodes report are bounded by those of a client that holds all examples of the update.
    """
    bounded = [
        update.model_copy(
            update={"metrics": {**update.metrics, EFFECTIVE_STEPS: min(steps, _most_steps(settings, update))}}
        )
        if (steps := update.metrics.get(EFFECTIVE_STEPS)) is not None
        else update
        for update in updates
    ]
    num_clients = sum(update.num_clients for update in updates)
    discount = 1.0
    if strategy is not None and strategy.buffering is not None:
        counted = (strategy.staleness_weight(number - one.base_round) * one.num_clients for one in updates)
        discount = sum(counted) / num_clients
    return StepContext(
        number, num_clients, settings.num_clients, settings.seed, mean_metrics(bounded), discount=discount
    )


def _most_steps(settings: TaskSettings, update: Update) -> float:
    steps = settings.num_steps(update.num_examples)
    return make_optimizer(settings).effective_steps(steps) or float(steps)


def further_arrays(strategy: Strategy, updates: Sequence[Update]) -> dict[str, list[FloatArray]]:
    """The arrays of the updates besides the parameters, as `aggregate` takes them."""
    names = (name for name in strategy.uplink_arrays if name != PARAMETERS)
    return {name: [update.arrays[name] for update in updates] for name in names}


def model_digest(vector: FloatArray) -> str:
    """The model's blake3 as hex, over its parameters as little-endian float32: equal digests, equal models."""
    return blake3(np.ascontiguousarray(vector, dtype="<f4").data.cast("B")).hexdigest()
