"""What a node's workers do for a task: load its data, write its test set, train chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from fedsim import plugins
from fedsim.data import load_dataset
from fedsim.data.guard import Division, read_division
from fedsim.data.load import dataset_digest
from fedsim.data.split import some_examples
from fedsim.data_schema import DataSchema
from fedsim.errors import BadInput
from fedsim.learning.aggregate import client_layout, split_received, uplink_layout
from fedsim.learning.attacked import start_trainer
from fedsim.learning.attacks import attacking_clients, make_attack
from fedsim.learning.blocks import blocks_in_batch, divide_blocks
from fedsim.learning.chunk import ChunkStates, senders_of, train_chunk, training_bytes
from fedsim.learning.cohort import ChunkPlan
from fedsim.learning.column_statistics import STATISTICS
from fedsim.learning.common_scale import Scale, apply_scale
from fedsim.learning.components import Components
from fedsim.learning.conform import conform
from fedsim.learning.engine import make_deterministic
from fedsim.learning.engines import ClientData, ClientTrainer, Engine
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import DataSet, Examples
from fedsim.learning.fixed_arrays import frozen_digest
from fedsim.learning.networks import count_parameters, task_network, task_roles
from fedsim.learning.objectives import check_data, make_objective
from fedsim.learning.partitions import Partition, partition_of
from fedsim.learning.phases import Content
from fedsim.learning.strategies import Strategy, make_strategy
from fedsim.learning.transforms import Pipeline, make_pipeline, task_phases
from fedsim.settings import TaskSettings
from fedsim.spool.client_states import SENDER, StatesOnDisk
from fedsim.spool.npy import check_digest, open_vector, write_array
from fedsim.spool.updates import write_update
from fedsim.worker.data_statistics import statistics_of
from fedsim.worker.evaluation_jobs import TestHeldOut
from fedsim.worker.held_out_tests import HeldOutTests
from fedsim.worker.jobs import (
    AnswerMade,
    AnswerPhase,
    ChunkTrained,
    ClientDiverged,
    DataLoaded,
    Done,
    JobFailed,
    Load,
    NodeJob,
    Reply,
    Train,
    WriteTestset,
)


class NodeJobs:
    """One worker's work for one task: data and model stay in memory from `Load` on."""

    def __init__(self, threads: int) -> None:
        make_deterministic(threads)
        self._dataset: DataSet | None = None
        self._tests: HeldOutTests | None = None
        self._client_data: ClientData | None = None
        self._trainer: ClientTrainer | None = None
        self._start: Callable[[ClientData], ClientTrainer] | None = None
        self._schema: DataSchema | None = None
        self._scale: Scale = ()
        self._strategy = Strategy()
        self._personal = 0
        self._least_shown: int | None = None
        self._frozen = ""
        self._pipeline = Pipeline()
        self._checked: tuple[Path, str] | None = None
        self._statistics: Callable[[], Content] | None = None

    def do(self, job: NodeJob) -> Reply:
        """Do one job; raises `BadInput` where what was given cannot be used."""
        match job:
            case Load():
                return self._load(job)
            case WriteTestset():
                return self._write_testset(job)
            case Train():
                return self._train(job)
            case AnswerPhase():
                return self._answer(job)
            case TestHeldOut():
                if self._tests is None:
                    raise BadInput("a model came before the data was loaded")
                return self._tests.test(job)

    def _load(self, job: Load) -> Reply:
        assignment = job.assignment
        settings = assignment.settings
        spec = assignment.model_spec
        if settings.trains and (reason := _too_large(job)) is not None:
            return JobFailed(job=job.job, reason=reason, refused=True)
        dataset = load_dataset(job.dataset, job.folder)
        if assignment.dataset_digest not in (None, dataset_digest(dataset)):
            raise BadInput(
                f"the data set {job.dataset.name} here is not the one that the task was planned with: it has changed "
                "since; submit the task again"
            )
        division, held_out = _division(job, dataset)
        if held_out is not None:
            dataset = replace(dataset, held_out=held_out)
        if division is not None:  # nothing that is computed from here on knows of other examples
            dataset = replace(dataset, train=division.restrict(dataset.train))
        if assignment.data_schema is not None:
            dataset = conform(dataset, assignment.data_schema, spec.num_classes)
        if dataset.feature_shape != spec.feature_shape or dataset.num_classes > spec.num_classes:
            raise BadInput(
                f"the data set {job.dataset.name} has features {dataset.feature_shape} and {dataset.num_classes} "
                f"classes, the task wants {spec.feature_shape} and {spec.num_classes}"
            )
        if settings.trains:
            objective = make_objective(settings)
            check_data(objective, settings.objective, dataset.train.targets, spec.feature_shape, spec.num_classes)
        partition, block_size = _clients(job, dataset, division)
        runs = partition.runs(assignment.first_client, assignment.num_clients)
        fewest = min(size for _, size in runs)
        if fewest < job.min_examples:
            reason = (
                f"this institution lets no update leave with fewer than {job.min_examples} examples behind it, "
                f"and a client here would have {fewest}: choose fewer clients"
            )
            return JobFailed(job=job.job, reason=reason, refused=True)
        if (reason := _too_few_steps(job, block_size, runs)) is not None:
            return JobFailed(job=job.job, reason=reason, refused=True)
        self._dataset = dataset
        if not settings.trains:
            self._statistics = partial(statistics_of, job, dataset.train, division)
            return DataLoaded(num_examples=runs, partition=partition.digest)
        components = Components.of(settings)
        self._strategy = components.strategy
        engine: Engine = plugins.make(plugins.ENGINES, assignment.engine.name, assignment.engine.options)
        if division is not None:
            settings = _of_whole_blocks(settings, block_size)
        data = self._client_data = ClientData(settings, dataset.train, partition, block_size)
        self._schema, self._scale = assignment.data_schema, ()
        roles = task_roles(spec, settings, self._strategy)
        self._personal, self._least_shown = roles.kept_size, job.client_figures
        self._tests = HeldOutTests(assignment, dataset, self._strategy, roles, partition, block_size)
        if roles.fixed:
            self._frozen = frozen_digest(task_network(spec, settings, self._strategy))
        self._start = lambda data: start_trainer(engine, data, spec, components, assignment.engine.device)
        self._trainer = self._start(data)
        self._pipeline = make_pipeline(settings, self._strategy)
        return DataLoaded(num_examples=runs, partition=partition.digest)

    def _write_testset(self, job: WriteTestset) -> Reply:
        if self._dataset is None or self._dataset.test is None:
            raise BadInput("there is no test set to send")
        features, labels = self._dataset.test.arrays()
        write_array(job.data, features)
        write_array(job.labels, labels)
        return Done(job=job.job)

    def _answer(self, job: AnswerPhase) -> Reply:
        if self._statistics is not None and job.phase == STATISTICS:
            return AnswerMade(phase=job.phase, round=job.round, content=self._statistics())
        if self._client_data is None:
            raise BadInput("a question came before the data was loaded")
        phases = {phase.name: phase for phase in task_phases(self._client_data.settings, self._schema)}
        if job.phase not in phases:
            raise BadInput(f"the task has no phase {job.phase} here (it has {', '.join(phases) or 'none'})")
        content = phases[job.phase].answer(job.content, self._client_data)
        return AnswerMade(phase=job.phase, round=job.round, content=content)

    def _train(self, job: Train) -> Reply:
        if self._trainer is None or self._start is None or self._client_data is None:
            raise BadInput("a chunk came before the data was loaded")
        started = time.monotonic()
        if job.scale != self._scale:  # known from round 1 on
            train = apply_scale(self._client_data.train, job.scale)
            self._trainer, self._scale = self._start(replace(self._client_data, train=train)), job.scale
        strategy = self._strategy
        if job.digest is not None and self._checked != (job.model, job.digest):  # once for all chunks of a round
            check_digest(job.model, job.digest)
            self._checked = (job.model, job.digest)
        vector, downlink = split_received(strategy, open_vector(job.model))
        sent = uplink_layout(strategy, len(vector))
        layout, kept = self._pipeline.layout(sent), self._pipeline.kept_layout(sent)
        place = job.round, job.chunk
        own = client_layout(strategy, len(vector), self._personal)
        clients = StatesOnDisk(job.out, own, *place)
        senders = StatesOnDisk(job.out, kept, *place, owner=SENDER)
        states = ChunkStates(clients if own.shapes else None, senders if kept.shapes else None)
        try:
            updates = train_chunk(
                self._trainer,
                strategy,
                job.chunk,
                job.clients,
                job.round,
                vector,
                self._pipeline,
                downlink=downlink,
                states=states,
                slot=job.slot,
                least_shown=self._least_shown,
            )
            known = {"base_digest": job.digest or "", "frozen_digest": self._frozen}
            based = (update.model_copy(update=known) for update in updates)
            written = [write_update(job.out, update, layout) for update in based]
            if states.clients is not None:
                clients.adopt(job.clients, job.tested if self._personal else ())
            if states.senders is not None:
                senders.adopt(senders_of(ChunkPlan(job.chunk, 0, job.clients, job.slot), strategy))
        except Diverged as diverged:
            client = job.clients[0] if diverged.client is None else diverged.client
            return ClientDiverged(round=job.round, client=client, chunk=job.chunk)
        seconds = time.monotonic() - started
        return ChunkTrained(round=job.round, chunk=job.chunk, updates=tuple(written), seconds=seconds)


def _division(job: Load, dataset: DataSet) -> tuple[Division | None, Examples | None]:
    """The blocks of a guarded data set, which must be those that the task was planned with, and what is held out."""
    if job.guard is None:
        return None, None
    division = read_division(job.guard.path, job.dataset.name, dataset.train, job.guard.min_difference)
    if job.assignment.guard != division.secret_digest:
        raise BadInput(
            f"the data set {job.dataset.name} is guarded here, and the task was not planned with the blocks that it is "
            "divided into: submit the task again"
        )
    if job.dataset.validation_share is None:
        return division, None
    division, indices = division.hold_out(job.dataset.validation_share, job.dataset.name)
    return division, some_examples(dataset.train, indices)


def _clients(job: Load, dataset: DataSet, division: Division | None) -> tuple[Partition, int]:
    """The task's clients, and the size of the blocks of which they are unions."""
    assignment = job.assignment
    clients = assignment.first_client, assignment.num_clients
    if division is None:
        return partition_of(assignment.settings, dataset.train, own=clients if assignment.own_clients else None), 1
    size, labels = division.size, dataset.train.strata
    return divide_blocks(assignment.settings, labels[::size], size, clients, job.min_examples), size


def _of_whole_blocks(settings: TaskSettings, block_size: int) -> TaskSettings:
    """The settings with a batch of whole blocks."""
    return settings.model_copy(update={"local_batch_size": blocks_in_batch(settings, block_size) * block_size})


def _too_few_steps(job: Load, block_size: int, runs: Sequence[tuple[int, int]]) -> str | None:
    """Why `max_steps` is too low for the rules on how many examples are behind an update.

    A client of a guarded data set uses each of its examples: which of them a shorter round uses follows from the seed,
    and a user chooses that.
    """
    settings = job.assignment.settings
    if not settings.max_steps:
        return None
    if job.guard is not None:
        settings = _of_whole_blocks(settings, block_size)
        most = max(size for _, size in runs)
        needed = -(-most // settings.local_batch_size)
        rule = "passes over all the examples of a guarded data set, which takes more steps"
    else:
        needed = -(-job.min_examples // settings.local_batch_size)
        rule = f"uses at least {job.min_examples} examples for an update (min_examples), which takes {needed} steps"
    if settings.max_steps >= needed:
        return None
    return (
        f"at this institution a client {rule}; max_steps is {settings.max_steps}: raise it, set it to 0, or choose a "
        "larger local_batch_size"
    )


def _too_large(job: Load) -> str | None:
    """Why the institution's limits or this host forbid the model, before it is made and before any data is loaded."""
    spec = job.assignment.model_spec
    number = count_parameters(spec)
    if number is None:
        return None
    if job.max_parameters is not None and number > job.max_parameters:
        return f"the model {spec.name} has {number:,} parameters here, this institution allows {job.max_parameters:,}"
    settings = job.assignment.settings
    strategy = make_strategy(settings)
    clients = range(job.assignment.first_client, job.assignment.first_client + job.assignment.num_clients)
    attack = make_attack(settings)
    attackers = len(attacking_clients(attack, settings).intersection(clients)) if attack and attack.crafts else 0
    pipeline = make_pipeline(settings, strategy)
    roles = task_roles(spec, settings, strategy)
    needed = training_bytes(number, strategy, len(clients), pipeline, attackers, roles.kept_size)
    about = f"a worker needs about {needed:,} bytes for the model {spec.name} of {number:,} parameters"
    if job.max_memory_bytes is not None and needed > job.max_memory_bytes:
        return f"{about}, this institution allows {job.max_memory_bytes:,} for each"
    if job.installed_memory_bytes is not None and needed > job.installed_memory_bytes:
        return f"{about}, and of the memory of this host each has {job.installed_memory_bytes:,}: use fewer workers"
    return None
