"""The asynchronous rounds of a simulated task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedsim.errors import BadInput
from fedsim.learning.buffering import Arrival, Buffering, arrivals_by_clock, read_record
from fedsim.learning.buffering_checks import buffering_of
from fedsim.learning.chunk import ChunkStates
from fedsim.learning.cohort import ChunkPlan
from fedsim.learning.examples import FloatArray
from fedsim.learning.samplers import Losses
from fedsim.learning.strategies import Strategy
from fedsim.learning.transforms import Pipeline
from fedsim.settings import TaskSettings
from fedsim.update import Arrays, Update

Train = Callable[[Sequence[ChunkPlan], int, FloatArray, Arrays, ChunkStates], list[Update]]
"""Trains chunks from the model, float32 [P], that a round began with; see `ForkedTrainers.train`."""


class BufferedRounds:
    """The updates of a simulation's asynchronous rounds: as recorded, or by the clock of `arrivals_by_clock`.

    Args:
        settings: of the task.
        buffering: of the task.
        pipeline: of the task.
        replay: the record of a run, by round; None: the clock decides.
        models: those that updates may begin with, by the round that began with them.
        train: trains clients.
        placement: of the clients.
    """

    def __init__(
        self,
        settings: TaskSettings,
        buffering: Buffering,
        pipeline: Pipeline,
        replay: Mapping[Any, Sequence[Any]] | None,
        models: Mapping[int, FloatArray],
        train: Train,
        placement: Sequence[tuple[int, int]],
    ) -> None:
        self.models = dict(models)
        self.arrivals: tuple[Arrival, ...] = ()
        self.losses: Losses = ()
        self._buffering = buffering
        self._pipeline = pipeline
        self._train = train
        self._placement = placement
        self._record = None if replay is None else read_record(replay, buffering.max_staleness)
        self._clock = enumerate(arrivals_by_clock(settings.seed, settings.num_clients, buffering), 1)

    def updates(self, number: int, vector: FloatArray, downlink: Arrays) -> list[Update]:
        """What round `number` sums, in this order; it begins with the model `vector`, float32 [P], and `downlink`."""
        self.models[number] = vector
        self.models = {old: kept for old, kept in self.models.items() if number - old <= self._buffering.max_staleness}
        self.arrivals = arrivals = self._arrivals(number)
        trained: dict[Arrival, Update] = {}
        for base in sorted({one.base_round for one in arrivals}):
            if base not in self.models:
                raise BadInput(f"round {number} used an update that began in round {base}, whose model is not known")
            of_base = [one for one in arrivals if one.base_round == base]
            chunks = [ChunkPlan(place, self._node(one.client), (one.client,)) for place, one in enumerate(of_base)]
            model = self.models[base]
            for one, update in zip(of_base, self._train(chunks, base, model, downlink, ChunkStates()), strict=True):
                trained[one] = self._pipeline.on_server(update, model)
        return [trained[one] for one in arrivals]

    def node_of(self, update: Update) -> int:
        """The node, by its place, of an update; each is of one client."""
        return self._node(update.client or 0)

    def _node(self, client: int) -> int:
        return next(at for at, (first, count) in enumerate(self._placement) if first <= client < first + count)

    def _arrivals(self, number: int) -> tuple[Arrival, ...]:
        if self._record is not None:
            if not self._record.get(number):
                raise BadInput(f"the record lacks what round {number} summed")
            return tuple(self._record[number])
        return next(arrivals for found, arrivals in self._clock if found == number)


def buffered_rounds(
    strategy: Strategy,
    settings: TaskSettings,
    pipeline: Pipeline,
    replay: Mapping[Any, Sequence[Any]] | None,
    missing: object,
    models: Mapping[int, FloatArray],
    train: Train,
    placement: Sequence[tuple[int, int]],
) -> BufferedRounds | None:
    """The rounds of a simulation, if they are asynchronous.

    Raises:
        BadInput: a record is given that does not fit the strategy's kind of rounds.
    """
    buffering = buffering_of(strategy, settings)
    if buffering is None and replay is not None:
        raise BadInput("replay repeats asynchronous rounds, and those of this strategy wait for their cohorts")
    if buffering is None:
        return None
    if missing:
        raise BadInput("asynchronous rounds miss no clients: replay says what each of them summed")
    return BufferedRounds(settings, buffering, pipeline, replay, models, train, placement)
