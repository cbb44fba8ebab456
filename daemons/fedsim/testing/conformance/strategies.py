"""Checks of strategies: the rule that combines updates, the server's step, and the client's gradients."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedsim import plugins
from fedsim.learning.aggregate import aggregate, initial_state, run_passes
from fedsim.learning.examples import FloatArray
from fedsim.learning.simulate import simulate
from fedsim.learning.strategies import Block, ClientRound, StepContext, Strategy, Uplink
from fedsim.settings import TaskSettings
from fedsim.testing.conformance.candidate import Candidate, require, require_reproducible_task, small_data
from fedsim.update import EFFECTIVE_STEPS, PARAMETERS, TRAIN_LOSS

SIZE = 211
CLIENTS = 7
EXAMPLES = (30, 600, 10, 20, 50, 80, 130)
BATCH = 6
"""Of which no client's last batch is a single example, which batch normalisation does not take."""
Server = tuple[FloatArray, dict[str, FloatArray]]
"""What the server keeps from round to round: the model, and the strategy's state."""


def _vectors(count: int, seed: int) -> list[FloatArray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=SIZE).astype(np.float32) for _ in range(count)]


def _network(feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network with statistics, and with layers enough to keep some of them at the clients."""
    return nn.Sequential(nn.Linear(feature_shape[0], 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, num_classes))


def _weights(strategy: Strategy) -> list[float]:
    return [strategy.weight(examples, 1) for examples in EXAMPLES]


def _further(strategy: Strategy) -> list[str]:
    return [name for name in strategy.uplink_arrays if name != PARAMETERS]


def _context(strategy: Strategy, arrays: Block) -> StepContext:
    metrics = {EFFECTIVE_STEPS: 5.0, TRAIN_LOSS: 0.5}
    return StepContext(1, CLIENTS, 2 * CLIENTS, 0, metrics, dict.fromkeys(_further(strategy), arrays))


def _client_round(strategy: Strategy) -> ClientRound:
    """A client's round whose arrays are one tensor each."""
    names = [*strategy.downlink_arrays, *strategy.client_state]
    arrays = [[torch.from_numpy(vector).reshape(1, -1)] for vector in _vectors(len(names), 8)]
    down = len(strategy.downlink_arrays)
    received = dict(zip(strategy.downlink_arrays, arrays[:down], strict=True))
    return ClientRound(received, dict(zip(strategy.client_state, arrays[down:], strict=True)), 5, 0.1, 5.0)


def _start(strategy: Strategy) -> Server:
    return _vectors(1, 99)[0], initial_state(strategy, SIZE)


def _round(
    strategy: Strategy, server: Server, updates: Sequence[FloatArray], *, block: int | None = None
) -> tuple[Server, bool]:
    """One round; also returns whether all numbers are finite."""
    vector, state = server
    out, state_out = np.empty_like(vector), initial_state(strategy, SIZE)
    arrays = dict.fromkeys(_further(strategy), updates)
    context = replace(_context(strategy, np.zeros(0)), arrays={})
    finite = aggregate(
        strategy,
        vector,
        updates,
        _weights(strategy),
        state,
        out,
        state_out,
        arrays=arrays,
        context=context,
        block=block,
    )
    return (out, state_out), finite


def _rounds(candidate: Candidate, *, block: int | None = None) -> bytes:
    """The bytes of model and state after two rounds with a new instance."""
    strategy: Strategy = candidate.make()
    server = _start(strategy)
    for number in range(2):
        server, _ = _round(strategy, server, _vectors(CLIENTS, number), block=block)
    return _bytes(server)


def _bytes(server: Server) -> bytes:
    vector, state = server
    return b"".join([vector.tobytes(), *(state[name].tobytes() for name in sorted(state))])


def _combine(strategy: Strategy, updates: Sequence[FloatArray], weights: Sequence[float], block: int = SIZE) -> Block:
    """The combined vector, float64 [P], with the passes of `prepare` in blocks of this size."""
    received = _vectors(1, 99)[0]
    prepared = run_passes(strategy.prepare(weights, _context(strategy, np.zeros(0))), received, updates, block)
    return strategy.combine(updates, weights, received.astype(np.float64), prepared)


def combines_deterministically(candidate: Candidate) -> None:
    """The same updates give the same bytes."""
    require(_rounds(candidate) == _rounds(candidate), "the same updates, combined twice, gave different bytes")


def blocks_change_nothing(candidate: Candidate) -> None:
    """`combine` and `step` give the same bytes for whole vectors and for blocks of any size."""
    whole = _rounds(candidate, block=SIZE)
    for block in (1, 7, 64, SIZE - 1):
        require(_rounds(candidate, block=block) == whole, f"blocks of {block} of {SIZE} parameters give other bytes")


def passes_add_up(candidate: Candidate) -> None:
    """The values of `prepare` are sums over blocks: where blocks begin changes nothing but rounding."""
    strategy, updates = candidate.make(), _vectors(CLIENTS, 0)
    whole = _combine(strategy, updates, _weights(strategy))
    for block in (7, 64):
        parts = _combine(strategy, updates, _weights(strategy), block)
        require(
            np.allclose(whole, parts, rtol=1e-6, atol=1e-9),
            f"with passes of `prepare` over blocks of {block} parameters the result differs; what a pass returns for "
            "the blocks is added up",
        )


def only_reads_its_input(candidate: Candidate) -> None:
    """Updates may be read-only memory-mapped files, and give the same bytes as arrays in memory."""
    strategy: Strategy = candidate.make()
    updates = _vectors(CLIENTS, 0)
    expected, _ = _round(candidate.make(), _start(strategy), [update.copy() for update in updates])
    with tempfile.TemporaryDirectory(prefix="fedsim-") as folder:
        paths = [Path(folder) / f"{number}.npy" for number in range(CLIENTS)]
        for path, update in zip(paths, updates, strict=True):
            np.save(path, update)
        mapped = [np.load(path, mmap_mode="r") for path in paths]
        server, _ = _round(strategy, _start(strategy), mapped)
        require(_bytes(server) == _bytes(expected), "memory-mapped updates give other bytes than arrays in memory")
        received = _start(strategy)[0].astype(np.float64)
        state = {name: np.zeros(SIZE) for name in strategy.server_state}
        context = _context(strategy, np.zeros(0))
        prepared = run_passes(strategy.prepare(_weights(strategy), context), _start(strategy)[0], mapped, SIZE)
        arrays = np.zeros(SIZE)
        for array in (received, arrays, *state.values()):
            array.flags.writeable = False
        combined = strategy.combine(mapped, _weights(strategy), received, prepared)
        strategy.step(received, combined, state, _context(strategy, arrays))


def returns_blocks(candidate: Candidate) -> None:
    """`combine` and `step` return float64 blocks as long as the received one, and the state that is declared."""
    strategy: Strategy = candidate.make()
    received = _start(strategy)[0].astype(np.float64)
    combined = _combine(strategy, _vectors(CLIENTS, 0), _weights(strategy))
    old = {name: np.zeros(SIZE) for name in strategy.server_state}
    new, state = strategy.step(received, combined, old, _context(strategy, combined))
    require(
        set(state) == set(strategy.server_state),
        f"`step` returns the state {sorted(state)}, `server_state` declares {sorted(strategy.server_state)}",
    )
    named = {"`combine`": combined, "`step`": new, **{f"the state {name}": state[name] for name in state}}
    for name, array in named.items():
        require(
            array.shape == (SIZE,) and array.dtype == np.float64,
            f"{name} is {array.dtype} {list(array.shape)}; it must be float64 [{SIZE}]",
        )


def continues_after_a_restart(candidate: Candidate) -> None:
    """A new instance with the saved model and state goes on with the same bytes: nothing is kept in the instance."""
    strategy: Strategy = candidate.make()
    server = _start(strategy)
    for number in range(2):
        server, _ = _round(strategy, server, _vectors(CLIENTS, number))
    saved = server[0].copy(), {name: array.copy() for name, array in server[1].items()}
    restarted: Strategy = candidate.make()
    for number in (2, 3):
        server, _ = _round(strategy, server, _vectors(CLIENTS, number))
        saved, _ = _round(restarted, saved, _vectors(CLIENTS, number))
    require(
        _bytes(server) == _bytes(saved),
        "a new instance goes on with other bytes; keep what rounds need in the vectors of `server_state`",
    )


def stays_finite(candidate: Candidate) -> None:
    """Finite updates give finite numbers, also where all updates are zero or very different in size."""
    zeros = [np.zeros(SIZE, np.float32) for _ in range(CLIENTS)]
    scaled = [update * np.float32(10.0**number) for number, update in enumerate(_vectors(CLIENTS, 0))]
    for name, updates in {"random": _vectors(CLIENTS, 0), "zero": zeros, "very different": scaled}.items():
        strategy: Strategy = candidate.make()
        with np.errstate(divide="ignore"):
            _, finite = _round(strategy, _start(strategy), updates)
        require(finite, f"{name} updates, all finite, give numbers that are not finite")


def keeps_equal_updates(candidate: Candidate) -> None:
    """If all clients send the same update, that is what `combine` returns."""
    strategy: Strategy = candidate.make()
    (update,) = _vectors(1, 5)
    combined = _combine(strategy, [update.copy() for _ in range(CLIENTS)], _weights(strategy))
    require(np.allclose(combined, update, rtol=1e-6, atol=1e-7), "equal updates are combined into a different one")


def chunks_can_be_summed(candidate: Candidate) -> None:
    """With `Uplink.SUM` a node sends the weighted mean of a chunk of clients: it must have the same effect."""
    strategy: Strategy = candidate.make()
    if strategy.uplink == Uplink.EACH_CLIENT:
        return
    updates, weights = _vectors(CLIENTS, 0), _weights(strategy)
    chunk = np.average(np.stack(updates[:3]).astype(np.float64), axis=0, weights=weights[:3]).astype(np.float32)
    chunk_weight = strategy.weight(sum(EXAMPLES[:3]), 3)
    each = _combine(strategy, updates, weights)
    summed = _combine(strategy, [chunk, *updates[3:]], [chunk_weight, *weights[3:]])
    require(
        np.allclose(each, summed, rtol=1e-5, atol=1e-6),
        "three updates and their weighted mean have different effects; declare `uplink = Uplink.EACH_CLIENT`, or let "
        "`weight` be additive",
    )


def adjusts_only_gradients(candidate: Candidate) -> None:
    """`adjust_gradients` changes neither the parameters nor the received model, and gradients stay finite."""
    strategy: Strategy = candidate.make()
    arrays = [torch.from_numpy(vector) for vector in _vectors(3, 6)]
    gradient, parameter, received = (array.reshape(1, -1) for array in arrays)
    before = parameter.clone(), received.clone()
    strategy.adjust_gradients([gradient], [parameter], [received], _client_round(strategy))
    require(torch.equal(parameter, before[0]), "`adjust_gradients` changes the parameters")
    require(torch.equal(received, before[1]), "`adjust_gradients` changes the received model")
    require(bool(torch.isfinite(gradient).all()), "`adjust_gradients` makes finite gradients not finite")


def declares_its_arrays(candidate: Candidate) -> None:
    """Parameters go up, and what goes down is kept by the server."""
    strategy: Strategy = candidate.make()
    require(strategy.uplink_arrays[:1] == (PARAMETERS,), f"`uplink_arrays` does not begin with {PARAMETERS!r}")
    unknown = sorted(set(strategy.downlink_arrays) - set(strategy.server_state))
    require(not unknown, f"`downlink_arrays` has {', '.join(unknown)}, which `server_state` does not declare")
    for declared in (strategy.uplink_arrays, strategy.server_state, strategy.downlink_arrays, strategy.client_state):
        require(len(set(declared)) == len(declared), f"an array is declared twice in {declared}")
        for name in declared:
            require(name.isidentifier(), f"{name!r} is not a name; arrays are stored in files of this name")


def finishes_clients(candidate: Candidate) -> None:
    """`finish_client` returns the arrays that are declared, finite, and changes nothing that it is given."""
    strategy: Strategy = candidate.make()
    parameters, received = ([torch.from_numpy(vector).reshape(1, -1)] for vector in _vectors(2, 7))
    client = _client_round(strategy)
    given = [parameters, received, *client.received.values(), *client.state.values()]
    before = [part.clone() for parts in given for part in parts]
    arrays, state = strategy.finish_client(parameters, received, client)
    changed = [part for parts in given for part in parts]
    require(all(map(torch.equal, changed, before)), "`finish_client` changes what it is given")
    further = [*_further(strategy), *([PARAMETERS] if PARAMETERS in arrays else [])]
    for what, found, declared in (
        ("arrays", arrays, further),
        ("the state", state, list(strategy.client_state)),
    ):
        require(sorted(found) == sorted(declared), f"it returns {what} {sorted(found)}, {sorted(declared)} is declared")
        for name, parts in found.items():
            shapes = [part.shape for part in parts]
            require(shapes == [part.shape for part in parameters], f"{name} is not divided like the parameters")
            require(all(bool(torch.isfinite(part).all()) for part in parts), f"{name} is not finite")


def client_state_survives_a_restart(candidate: Candidate) -> None:
    """A task that goes on with a new instance, and the stored state of server and clients, gives the same model."""
    with candidate.installed(plugins.STRATEGIES) as name:
        settings = TaskSettings(
            model="logistic",
            partition="iid",
            num_clients=2 * CLIENTS,
            fraction_train=0.5,
            local_epochs=candidate.make().least_epochs,
            local_batch_size=BATCH,
            num_rounds=4,
            strategy=name,
            strategy_options=dict(candidate.options),
        )
        begun = settings.model_copy(update={"num_rounds": 2})
        whole = simulate(settings, small_data(), chunk_clients=2, model=_network)
        half = simulate(begun, small_data(), chunk_clients=2, model=_network)
        rest = simulate(settings, small_data(), chunk_clients=2, model=_network, resume=half)
    require(
        whole.digest == rest.digest,
        "with a new instance in its middle, a task gives another model; keep what clients need in `client_state`",
    )


def trains_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    require_reproducible_task(
        candidate,
        plugins.STRATEGIES,
        "strategy",
        network=_network,
        num_clients=CLIENTS,
        local_batch_size=BATCH,
        local_epochs=candidate.make().least_epochs,
    )


CHECKS = (
    combines_deterministically,
    blocks_change_nothing,
    passes_add_up,
    only_reads_its_input,
    returns_blocks,
    continues_after_a_restart,
    stays_finite,
    keeps_equal_updates,
    chunks_can_be_summed,
    adjusts_only_gradients,
    declares_its_arrays,
    finishes_clients,
    client_state_survives_a_restart,
    trains_reproducibly,
)
