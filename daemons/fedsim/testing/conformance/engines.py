"""Checks of engines: what they train is what the engine `sequential` trains, up to the tolerance that they declare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData, ClientTrainer, Engine
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.errors import Diverged
from fedsim.learning.networks import initial_vector
from fedsim.learning.partitions import make_partition
from fedsim.learning.simulate import simulate
from fedsim.learning.strategies import make_strategy
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.testing.conformance.candidate import NUM_CLASSES, Candidate, require, small_data
from fedsim.update import Arrays, Update

CLIENTS = 6
FEATURES = (6,)
STRATEGIES = ("fedavg", "fedprox", "scaffold")
"""Strategies that differ in what a client computes, receives, sends and keeps."""


def _settings(**chosen: Any) -> TaskSettings:
    given = {"model": "mlp", "model_options": {"hidden": (8,)}, "partition": "iid", "num_clients": CLIENTS}
    # 12 examples for each client: the last batch is a short one.
    given |= {"local_epochs": 2, "local_batch_size": 5, "local_learning_rate": 0.05, "num_rounds": 2}
    return TaskSettings.model_validate({**given, **chosen})


def _spec(settings: TaskSettings) -> ModelSpec:
    return ModelSpec.of(settings, FEATURES, NUM_CLASSES)


def _start(engine: Engine, settings: TaskSettings) -> ClientTrainer:
    train = small_data(FEATURES).train
    data = ClientData(settings, train, make_partition(settings, train.labels))
    return engine.start(data, _spec(settings), Components.of(settings), "cpu")


def _vectors(names: Sequence[str], size: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(scale=0.1, size=size).astype(np.float32) for name in names}


def _train(
    trainer: ClientTrainer, settings: TaskSettings, clients: Sequence[int], round_number: int = 1
) -> list[Update]:
    """The updates of some clients in one round, with arrays of the strategy's that are not zero."""
    strategy, vector = make_strategy(settings), initial_vector(_spec(settings), settings.seed)
    trained = trainer.train(
        clients,
        round_number,
        vector,
        downlink=_vectors(strategy.downlink_arrays, len(vector), 1),
        state_of=lambda client: _vectors(strategy.client_state, len(vector), 100 + client),
    )
    return [update.copied() for update in trained]


def _bytes(updates: Sequence[Update]) -> list[bytes]:
    return [
        b"".join(array.tobytes() for arrays in (update.arrays, update.client_state) for array in arrays.values())
        for update in updates
    ]


def yields_what_is_declared(candidate: Candidate) -> None:
    """One update for each client, in the order asked for, with the arrays and the state that the strategy declares."""
    for name in STRATEGIES:
        settings = _settings(strategy=name)
        strategy, size = make_strategy(settings), len(initial_vector(_spec(settings), 0))
        for clients in ((4, 1, 2), (3,), ()):
            updates = _train(_start(candidate.make(), settings), settings, clients, 3)
            found = tuple(update.client for update in updates)
            require(found == clients, f"of the clients {clients} it yields {found}")
            for update in updates:
                declared = (set(strategy.uplink_arrays), set(strategy.client_state))
                given = (set(update.arrays), set(update.client_state))
                require(
                    given == declared, f"with {name} it yields the arrays and state {given}; declared are {declared}"
                )
                require(update.base_round == 3, f"an update of round 3 has base_round {update.base_round}")
                require(update.num_examples == 12, f"a client of 12 examples has {update.num_examples}")
                for array in (*update.arrays.values(), *update.client_state.values()):
                    right = array.dtype == np.float32 and array.shape == (size,)
                    require(right, f"an array is {array.dtype} {list(array.shape)}; it must be float32 [{size}]")


def engine_trains_deterministically(candidate: Candidate) -> None:
    """The same clients, trained again by a new instance, give the same bytes."""
    settings = _settings()
    one, two = (_train(_start(candidate.make(), settings), settings, (0, 3, 5)) for _ in range(2))
    require(_bytes(one) == _bytes(two), "the same clients, trained twice, gave different bytes")


def clients_are_independent(candidate: Candidate) -> None:
    """A client's update does not depend on the clients and rounds that were trained before it."""
    engine: Engine = candidate.make()
    for name in STRATEGIES:
        settings = _settings(strategy=name)
        alone = _train(_start(engine, settings), settings, (3,), 2)
        trainer = _start(candidate.make(), settings)
        _train(trainer, settings, (5, 3), 1)
        together = _train(trainer, settings, (0, 1, 3), 2)[2:]
        require(
            _difference(alone, together) <= engine.tolerance,
            f"with {name} a client's update depends on what was trained before it",
        )


def equals_the_sequential_engine(candidate: Candidate) -> None:
    """Every array differs from that of the engine `sequential` by at most `tolerance`; 0: the same bytes."""
    engine: Engine = candidate.make()
    clients = tuple(range(CLIENTS))
    for name in STRATEGIES:
        for batch_size in (1, 5, 100):
            settings = _settings(strategy=name, local_batch_size=batch_size)
            expected = _train(_start(SequentialEngine(), settings), settings, clients)
            found = _train(_start(candidate.make(), settings), settings, clients)
            difference = _difference(expected, found)
            require(
                difference <= engine.tolerance,
                f"with {name} and batches of {batch_size} an update differs from the sequential engine's by "
                f"{difference:.2g}, and the engine declares {engine.tolerance:g}",
            )


def _difference(expected: Sequence[Update], found: Sequence[Update]) -> float:
    """The largest difference of an array's number, relative to the array's largest one; also of the mean loss."""
    worst = 0.0
    for one, two in zip(expected, found, strict=True):
        for arrays, others in ((one.arrays, two.arrays), (one.client_state, two.client_state)):
            for name, array in arrays.items():
                worst = max(worst, float(np.abs(array - others[name]).max() / max(np.abs(array).max(), 1e-30)))
        for name, value in one.metrics.items():
            worst = max(worst, abs(value - two.metrics.get(name, np.inf)) / max(abs(value), 1e-30))
    return worst


def leaves_everything_as_it_was(candidate: Candidate) -> None:
    """The global model is only read, and torch's random stream is put back."""
    settings = _settings()
    vector = initial_vector(_spec(settings), 0)
    before = vector.copy()
    trainer = _start(candidate.make(), settings)
    stream = torch.get_rng_state()
    for clients in ((0, 1), (2,)):
        list(trainer.train(clients, 1, vector))
    require(np.array_equal(vector, before), "training changes the global model")
    require(torch.equal(torch.get_rng_state(), stream), "training changes torch's random stream")
    vector.flags.writeable = False
    require(len(list(trainer.train((0, 1), 1, vector))) == 2, "a model that can only be read is not trained")


def reports_divergence(candidate: Candidate) -> None:
    """A client whose parameters are no longer finite raises `Diverged` with the round and the client."""
    settings = _settings(local_learning_rate=100.0, local_epochs=200)
    try:
        _train(_start(candidate.make(), settings), settings, (4,), 7)
    except Diverged as error:
        found = (error.round_number, error.client)
        require(found == (7, 4), f"round 7 of client 4 is reported as {found}")
    else:
        require(condition=False, problem="parameters that are not finite are not reported")


def engine_trains_whole_tasks(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    engine: Engine = candidate.make()
    one, two = (simulate(_settings(), small_data(FEATURES), chunk_clients=2, engine=engine) for _ in range(2))
    require(one.digest == two.digest, "the same task, trained twice, gave two different models")


def _network(feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network with statistics, a counter of whole numbers and a frozen layer."""
    first = nn.Linear(feature_shape[0], 8).requires_grad_(False)
    return nn.Sequential(first, nn.BatchNorm1d(8, momentum=None), nn.ReLU(), nn.Linear(8, num_classes))


def trains_every_role_of_tensors(candidate: Candidate) -> None:
    """Statistics, frozen and personal tensors are what the engine `sequential` makes of them."""
    engine: Engine = candidate.make()
    for name, statistics in (("fedavg", "average"), ("fedavg", "frozen"), ("fedavg", "local"), ("fedper", "average")):
        settings = _settings(strategy=name, statistics=statistics, local_batch_size=6)
        expected, found = (
            simulate(settings, small_data(FEATURES), chunk_clients=2, engine=each, model=_network)
            for each in (SequentialEngine(), engine)
        )
        differences = [np.abs(expected.vector - found.vector).max()]
        for client, kept in expected.client_states.items():
            own = found.client_states.get(client, {})
            differences += [np.abs(array - own.get(each, np.inf)).max() for each, array in kept.items()]
        worst = float(max(differences)) / float(np.abs(expected.vector).max())
        require(
            worst <= engine.tolerance,
            f"with {name} and {statistics} statistics a task differs from the sequential engine's by {worst:.2g}, and "
            f"the engine declares {engine.tolerance:g}",
        )


CHECKS = (
    yields_what_is_declared,
    engine_trains_deterministically,
    clients_are_independent,
    equals_the_sequential_engine,
    trains_every_role_of_tensors,
    leaves_everything_as_it_was,
    reports_divergence,
    engine_trains_whole_tasks,
)
