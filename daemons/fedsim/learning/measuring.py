"""Measures how a node trains quickest: with which engine, in how many processes, with how many threads each.

The candidates train the same made-up examples, in turn, and the least median wins. Counts are powers of two, and what
is faster by less than a tenth does not count as faster, so that noise seldom decides; where it does, the result is kept
all the same (see `client.speed_table`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from types import MappingProxyType

import numpy as np

from fedsim import plugins
from fedsim.array_layout import Layout
from fedsim.learning.aggregate import client_layout
from fedsim.learning.chunk import ChunkStates, training_bytes
from fedsim.learning.cohort import ChunkPlan
from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData, ClientTrainer, Engine
from fedsim.learning.examples import Examples, FloatArray, made_up_targets
from fedsim.learning.forked import ForkedTrainers
from fedsim.learning.partitions import Partition
from fedsim.learning.transforms import Pipeline
from fedsim.settings import OptionValue
from fedsim.speed import USUAL_CHUNK_CLIENTS, SpeedRequest, power_of_two
from fedsim.update import Arrays

MOST_PASSES = 5
WORTH_IT = 0.9
CHUNK_CLIENTS = 8
MOST_CHUNK_CLIENTS = 128
LARGE = 4  # of the memory, all candidates together may use one part in so many


@dataclass(frozen=True, order=True)
class Manner:
    """A way of training: the engine, the threads of each process, and how many processes."""

    engine: str
    threads: int
    workers: int


@dataclass(frozen=True)
class Quickest:
    """What was found: the manner of training, and how many clients are worth training together."""

    manner: Manner
    chunk_clients: int
    seconds: Mapping[Manner, float] = field(default_factory=dict)


def manners(
    engines: Sequence[str], processors: int, threads: int | None = None, workers: int | None = None
) -> list[Manner]:
    """The candidates, simplest first; `threads` and `workers` are fixed where they are given."""
    most = power_of_two(processors)
    counts = [threads] if threads else sorted({1, 2, 4, most} & {1 << bit for bit in range(most.bit_length())})
    return [
        Manner(engine, count, workers or power_of_two(max(1, processors // count)))
        for engine in engines
        for count in counts
    ]


class _NoStates:
    """Of clients that keep none, or as if they trained for the first time."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def read(self, client: int) -> Arrays:  # noqa: ARG002 - see ClientStates
        return self._layout.views(np.zeros(self._layout.size, np.float32))

    def write(self, client: int, state: Arrays) -> None:
        """Keep nothing."""


def measure(
    request: SpeedRequest,
    candidates: Sequence[Manner],
    *,
    num_parameters: int,
    personal: int = 0,
    engine_options: Mapping[str, OptionValue] = MappingProxyType({}),
    memory_bytes: int,
    budget_seconds: float,
    prepare: Callable[[int], None],
    clock: Callable[[], float],
) -> Quickest:
    """Time the candidates.

    Args:
        request: what is trained.
        candidates: at least one; the first is returned if the others cannot be compared with it in this memory.
        num_parameters: the length of the model's flat vector.
        personal: that of a client's personal vector.
        engine_options: of the engine, where there is one.
        memory_bytes: of this host, for all workers.
        budget_seconds: after this time no further pass over the candidates begins; two passes are always made.
        prepare: is called first in each process, which is then to compute with so many threads.
        clock: seconds from any moment on.

    Raises:
        BadInput: the model cannot be trained.
    """
    bench = _Bench(request, (num_parameters, personal), engine_options, prepare, clock)
    needed = training_bytes(num_parameters, bench.components.strategy, 2, Pipeline(), personal=personal)
    if needed * sum(each.workers for each in candidates) > memory_bytes // LARGE:
        candidates = [each for each in candidates if each.workers == 1] or candidates[:1]
    if len(candidates) < 2 or needed * len(candidates) > memory_bytes // LARGE:
        return Quickest(candidates[0], _usual_chunk(candidates[0]))
    with ExitStack() as stack:
        running = {each: stack.enter_context(bench.start(each)) for each in candidates}
        until = clock() + budget_seconds
        times: dict[Manner, list[float]] = {each: [] for each in candidates}
        for number in range(MOST_PASSES + 1):
            for each in candidates:
                seconds = bench.train(running[each], each.workers, CHUNK_CLIENTS)
                if number:  # the first pass builds the models
                    times[each].append(seconds / each.workers)
            if number and clock() > until:
                break
        medians = {each: median(found) for each, found in times.items()}
        best = quickest(medians)
        return Quickest(best, _best_chunk(bench, running[best], best, until), medians)


def quickest(seconds: Mapping[Manner, float]) -> Manner:
    """The first manner to which no other is worth changing."""
    best, *others = seconds
    for other in others:
        if seconds[other] < WORTH_IT * seconds[best]:
            best = other
    return best


def _usual_chunk(manner: Manner) -> int:
    return USUAL_CHUNK_CLIENTS if manner.engine == "sequential" else MOST_CHUNK_CLIENTS


def _best_chunk(bench: _Bench, trainers: ForkedTrainers, manner: Manner, until: float) -> int:
    """The largest chunk in which a client takes no longer: fewer chunks are fewer files."""
    if manner.engine == "sequential":  # its clients are trained one after another, however many are in a chunk
        return USUAL_CHUNK_CLIENTS
    size = best = CHUNK_CLIENTS
    least = bench.train(trainers, manner.workers, size) / size
    while size < MOST_CHUNK_CLIENTS and bench.clock() < until:
        size *= 2
        seconds = bench.train(trainers, manner.workers, size) / size
        if seconds * WORTH_IT <= least:
            best, least = size, min(seconds, least)
    return best


class _Bench:
    """Made-up examples, the same ones for every client."""

    def __init__(
        self,
        request: SpeedRequest,
        sizes: tuple[int, int],
        engine_options: Mapping[str, OptionValue],
        prepare: Callable[[int], None],
        clock: Callable[[], float],
    ) -> None:
        self.clock = clock
        self._prepare = prepare
        self._engine_options = dict(engine_options)
        self._spec = request.model_spec
        self._settings = request.settings
        self.components = Components.of(self._settings)
        strategy, rng = self.components.strategy, np.random.default_rng(0)
        targets = self.components.objective.targets
        count, most = request.examples, MOST_CHUNK_CLIENTS * 2
        features = rng.standard_normal((count, *self._spec.feature_shape), np.float32)
        if targets == "tokens":  # which are symbols
            features = rng.integers(self._spec.num_classes, size=features.shape).astype(np.float32)
        train = Examples(
            features,
            made_up_targets(rng, targets, count, self._spec.feature_shape, self._spec.num_classes),
            targets=targets,
        )
        partition = Partition(np.tile(np.arange(count), most), np.arange(most + 1) * count)
        self._data = ClientData(self._settings, train, partition)
        num_parameters, self._personal = sizes
        self._vector: FloatArray = np.full(num_parameters, 1e-3, np.float32)
        self._down = {name: np.zeros(num_parameters, np.float32) for name in strategy.downlink_arrays}
        self._states = ChunkStates(_NoStates(client_layout(strategy, num_parameters, self._personal)))

    def start(self, manner: Manner) -> ForkedTrainers:
        """Processes that train in this manner."""

        def make() -> list[ClientTrainer]:
            self._prepare(manner.threads)
            engine: Engine = plugins.make(plugins.ENGINES, manner.engine, self._engine_options)
            return [engine.start(self._data, self._spec, self.components, "cpu")]

        strategy = self.components.strategy
        return ForkedTrainers(manner.workers, make, strategy, Pipeline(), len(self._vector), self._personal)

    def train(self, trainers: ForkedTrainers, workers: int, clients: int) -> float:
        """The seconds in which each of the processes trains a chunk of so many clients."""
        chunks = [ChunkPlan(number, 0, tuple(range(clients))) for number in range(workers)]
        started = self.clock()
        trainers.train(chunks, 1, self._vector, self._down, self._states)
        return self.clock() - started
