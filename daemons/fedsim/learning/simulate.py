"""A complete federated task in one process, with the code and in the order of the platform's workers.

With the platform's placement, chunks, thread count and kind of processor it gives the platform's bytes; so it is the
reference that the platform is tested against, and what research on strategies runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from fedsim.learning.aggregate import (
    aggregate,
    further_arrays,
    initial_state,
    model_digest,
    round_context,
    weights_of,
)
from fedsim.learning.attacked import start_trainer
from fedsim.learning.attacks import Attack
from fedsim.learning.buffered_rounds import buffered_rounds
from fedsim.learning.buffering import Arrival
from fedsim.learning.chunk import ChunkStates, InProcessTrainers
from fedsim.learning.cohort import cut_chunks
from fedsim.learning.cohort_rounds import CohortRounds
from fedsim.learning.common_scale import scale_together
from fedsim.learning.components import Components
from fedsim.learning.conform import conform_all
from fedsim.learning.contributions import NO_CONTRIBUTIONS, Contributions, measure_contributions
from fedsim.learning.engines import ClientData, ClientTrainer, Engine, no_state
from fedsim.learning.engines.batched import BatchedEngine
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import DataSet, FloatArray
from fedsim.learning.forked import ForkedTrainers
from fedsim.learning.metrics import ClassValues, MetricValues
from fedsim.learning.models import Model
from fedsim.learning.networks import task_network
from fedsim.learning.objectives import Objective
from fedsim.learning.optimizers import Optimizer
from fedsim.learning.partitions import Partitioner
from fedsim.learning.samplers import Losses, Sampler
from fedsim.learning.schedules import Schedule
from fedsim.learning.screenings import Screened, Screening, screen
from fedsim.learning.simulated_start import (
    first_vector,
    fitting_spec,
    held_out_on,
    partitions_of_nodes,
    placed_clients,
    sizes_of_clients,
    states_in_memory,
    states_of,
)
from fedsim.learning.simulated_tests import SimulatedTests
from fedsim.learning.strategies import Strategy
from fedsim.learning.transforms import Pipeline, Transform, make_pipeline
from fedsim.settings import TaskSettings
from fedsim.update import PARAMETERS, TRAIN_LOSS, Arrays, mean_metric

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class RoundResult:
    """The record of a round. The metrics are empty where it was not evaluated; `train_loss` is None in round 0.

    `node_metrics`: the tests on what each node holds out, named by its first client (`evaluation: nodes` or `both`).
    `arrivals`: what an asynchronous round summed, in this order.
    `contributions`: loss, norm of the update and drift of each node, also named so, and of each client.
    """

    round: int
    digest: str
    num_examples: int
    train_loss: float | None
    metrics: MetricValues
    class_metrics: ClassValues
    screening: tuple[Screened, ...] = ()
    node_metrics: dict[str, Any] = field(default_factory=dict)
    arrivals: tuple[Arrival, ...] = ()
    contributions: Contributions = NO_CONTRIBUTIONS


@dataclass(frozen=True)
class SimulationResult:
    """The model after the last round, float32 [P], the rounds from 0 on, and what server, clients and senders keep.

    `tensor_roles` says which tensors are in the vector. `ended` says why it ended before its last round (`stop_when`);
    `best` is the best round by `keep_best` and its model. `models` are those that updates which are not used yet began
    with, if the rounds are asynchronous.
    """

    vector: FloatArray
    state: dict[str, FloatArray]
    rounds: list[RoundResult] = field(repr=False)
    client_states: dict[int, Arrays] = field(default_factory=dict, repr=False)
    sender_states: dict[int, Arrays] = field(default_factory=dict, repr=False)
    losses: Losses = field(default=(), repr=False)
    ended: str = ""
    best: tuple[int, FloatArray] | None = field(default=None, repr=False)
    models: dict[int, FloatArray] = field(default_factory=dict, repr=False)

    @property
    def digest(self) -> str:
        """The final model's digest."""
        return self.rounds[-1].digest


def simulate(
    settings: TaskSettings,
    dataset: DataSet | Sequence[DataSet],
    *,
    chunk_clients: int | Sequence[int] | None = None,
    placement: Sequence[tuple[int, int]] | None = None,
    on_round: Callable[[RoundResult], None] | None = None,
    resume: SimulationResult | None = None,
    initial: str | Path | Mapping[str, Any] | None = None,
    missing: Mapping[int, Collection[int]] | Mapping[str, Collection[int]] | None = None,
    replay: Mapping[Any, Sequence[Any]] | None = None,
    transforms: Sequence[Transform] | None = None,
    strategy: Strategy | type[Strategy] | None = None,
    partition: Partitioner | type[Partitioner] | None = None,
    objective: Objective | type[Objective] | None = None,
    optimizer: Optimizer | type[Optimizer] | None = None,
    schedule: Schedule | type[Schedule] | None = None,
    sampler: Sampler | type[Sampler] | None = None,
    screening: Screening | type[Screening] | None = None,
    attack: Attack | type[Attack] | None = None,
    model: str | Model | type[Model] | Callable[[tuple[int, ...], int], nn.Module] | None = None,
    engine: Engine | type[Engine] = BatchedEngine,
    device: str = "cpu",
    workers: int = 1,
) -> SimulationResult:
    """Run a task. Of the conditions of `stop_when`, `time` is left out: a simulation has no clock.

    Args:
        settings: the task's.
        dataset: the data set that all nodes hold; or, for the partitions `local` and `natural`, each node's own, whose
            columns are ordered by name as most have them. The test set is the first that there is.
        chunk_clients: most clients in a chunk, on all nodes or on each; None: a node's part of the cohort is one chunk.
        placement: (first_client, num_clients) of each node; None: one node, or one for each data set.
        on_round: is called for each round, round 0 (the initial model's evaluation) included.
        resume: continue after the last round of this result.
        initial: the first model: a safetensors file, such as a checkpoint, or float32 arrays by the names of the
            model's parameters, such as a `state_dict`; None: the model's own initialisation.
        missing: the clients without which a round went on, by round: the `missing` of a checkpoint's JSON replays a run
            of the platform that lost clients. What a screening left out is among them, so nothing is screened again.
        replay: what each asynchronous round summed, in this order, as [base round, client]: the `buffered` of a
            checkpoint's JSON, or the `arrivals` of rounds. None: a clock decides that follows from the seed, see
            `buffering.arrivals_by_clock`.
        transforms: of each update, between training and aggregation; None: those that the settings list.
        strategy: an object, or a class that is made with its default options, instead of what the settings name; it
            needs no installed package. The same holds for `partition`, `objective`, `optimizer`, `schedule`,
            `sampler`, `screening` and `attack`.
        partition: see `strategy`.
        objective: see `strategy`.
        optimizer: see `strategy`.
        schedule: see `strategy`.
        sampler: see `strategy`.
        screening: see `strategy`.
        attack: see `strategy`.
        model: see `strategy`; also an installed model's name, or a function
            `(feature_shape, num_classes) -> torch.nn.Module`.
        engine: trains each node's clients, as an object or a class.
        device: where to train and test.
        workers: processes that train chunks at once, each with one thread; `chunk_clients` is then by default what
            gives each of them a chunk. The chunks decide the result, not who trains them.

    Raises:
        BadInput: settings and data do not fit each other.
        Diverged: the model is no longer finite.
    """
    nodes = [dataset] if isinstance(dataset, DataSet) else conform_all(list(dataset))
    nodes = scale_together(nodes)
    components = Components.of(
        settings,
        strategy=strategy,
        partition=partition,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule,
        sampler=sampler,
        screening=screening,
        attack=attack,
        model=model,
    )
    partitioner, rule = components.partitioner, components.strategy
    pipeline = make_pipeline(settings, rule) if transforms is None else Pipeline(transforms, settings.seed)
    placement = placed_clients(placement, settings, components, nodes)
    model_spec = fitting_spec(components, settings, nodes)

    def start_trainers() -> list[ClientTrainer]:
        return [
            start_trainer(
                engine() if isinstance(engine, type) else engine,
                ClientData(settings, node.train, partition),
                model_spec,
                components,
                device,
            )
            for node, partition in zip(nodes, partitions_of_nodes(nodes, settings, partitioner, placement), strict=True)
        ]

    sizes = sizes_of_clients(nodes, settings, partitioner, placement) if components.sampler.needs_sizes else ()
    network = task_network(model_spec, settings, rule, components.model)
    network.model.to(device)
    test = next((node.test for node in nodes if node.test is not None), None)
    rounds = list(resume.rounds) if resume else []
    tests = SimulatedTests(
        settings,
        components.objective,
        network,
        test,
        held_out_on(nodes, placement, settings, partitioner, personal=bool(network.roles.kept_size)),
        rounds,
        resume.best if resume else None,
    )

    kept = states_in_memory(
        rule,
        pipeline,
        network.roles.flat_size,
        (resume.client_states, resume.sender_states) if resume else ({}, {}),
        network.roles.kept_size,
    )
    state_of = no_state if kept[0] is None else kept[0].read

    def record(
        round_number: int,
        vector: FloatArray,
        num_examples: int,
        train_loss: float | None,
        screened: tuple[Screened, ...] = (),
        arrivals: tuple[Arrival, ...] = (),
        contributions: Contributions = NO_CONTRIBUTIONS,
    ) -> None:
        tested = tests.run(round_number, vector, state_of)
        result = RoundResult(
            round_number,
            model_digest(vector),
            num_examples,
            train_loss,
            tested.metrics,
            tested.class_metrics,
            screened,
            tests.of_nodes,
            arrivals,
            contributions,
        )
        rounds.append(result)
        if on_round:
            on_round(result)

    # Forked before torch computes gradients here: what it then keeps does not survive a fork.
    with (
        ForkedTrainers(workers, start_trainers, rule, pipeline, network.roles.flat_size, network.roles.kept_size)
        if workers > 1
        else InProcessTrainers(start_trainers(), rule, pipeline)
    ) as trainers:
        if resume:
            vector, state = resume.vector, resume.state
        else:
            vector = first_vector(components, model_spec, settings, network, initial)
            state = initial_state(rule, len(vector))
            record(0, vector, 0, None)
        source = buffered_rounds(
            rule, settings, pipeline, replay, missing, resume.models if resume else {}, trainers.train, placement
        ) or CohortRounds(
            settings,
            components,
            pipeline,
            lambda cohort: cut_chunks(cohort, placement, chunk_clients or -(-len(cohort) // workers)),
            ChunkStates(*kept),
            missing=missing,
            sizes=sizes,
            losses=resume.losses if resume else (),
            train=trainers.train,
        )
        for round_number in tests.rounds_after(rounds[-1].round):
            # 1. and 2. The updates that count in the round, in order: those of its cohort, or of several rounds'.
            updates = source.updates(round_number, vector, {name: state[name] for name in rule.downlink_arrays})
            # 3. Their updates, or those that the screening does not exclude, become the next model, in canonical order.
            screened: tuple[Screened, ...] = ()
            if components.screening is not None and missing is None:
                screened, updates = screen(components.screening, rule, vector, updates)
            new_vector, new_state = np.empty_like(vector), initial_state(rule, len(vector))
            if not aggregate(
                rule,
                vector,
                [update.arrays[PARAMETERS] for update in updates],
                weights_of(rule, round_number, updates),
                state,
                new_vector,
                new_state,
                arrays=further_arrays(rule, updates),
                context=round_context(settings, round_number, updates, rule),
                statistics=network.roles.shared_statistics,
            ):
                raise Diverged(round_number)
            found = measure_contributions(
                rule,
                vector,
                updates,
                lambda update: str(placement[source.node_of(update)][0]),
                drift=settings.tests_round(round_number),
            )
            vector, state = new_vector, new_state
            # 4. The round is tested, where it is due, and reported.
            loss = mean_metric(updates, TRAIN_LOSS)
            num_examples = sum(update.num_examples for update in updates)
            record(round_number, vector, num_examples, loss, screened, source.arrivals, found)
    return SimulationResult(
        vector,
        state,
        rounds,
        states_of(kept[0]),
        states_of(kept[1]),
        source.losses,
        ended=tests.reason_to_end,
        best=tests.best,
        models=source.models,
    )
