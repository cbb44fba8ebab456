"""The rounds of a simulated task that wait for their cohorts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from fedsim.errors import BadInput
from fedsim.learning.answers import absent_clients, answered_chunks, late_clients, losses_after
from fedsim.learning.buffering import Arrival
from fedsim.learning.chunk import ChunkStates
from fedsim.learning.cohort import ChunkPlan
from fedsim.learning.components import Components
from fedsim.learning.examples import FloatArray
from fedsim.learning.samplers import Known, Losses
from fedsim.learning.transforms import Pipeline
from fedsim.settings import TaskSettings
from fedsim.update import Arrays, Update

Missing = Mapping[int, Collection[int]] | Mapping[str, Collection[int]]


class CohortRounds:
    """The updates of each round, in canonical order.

    Args:
        settings: of the task.
        components: of the task.
        pipeline: of the task.
        cut: divides a cohort into chunks.
        states: of clients and senders, as the task keeps them.
        missing: the clients without which a round went on; None: of those that are too many, the first count.
        sizes: examples of each client, where the sampler needs them.
        losses: that clients have reported up to now.
        train: trains chunks; see `ForkedTrainers.train`.
    """

    def __init__(
        self,
        settings: TaskSettings,
        components: Components,
        pipeline: Pipeline,
        cut: Callable[[Sequence[int]], tuple[ChunkPlan, ...]],
        states: ChunkStates,
        *,
        missing: Missing | None,
        sizes: Sequence[int],
        losses: Losses,
        train: Callable[[Sequence[ChunkPlan], int, FloatArray, Arrays, ChunkStates], list[Update]],
    ) -> None:
        self.losses = losses
        self.models: dict[int, FloatArray] = {}
        self.arrivals: tuple[Arrival, ...] = ()
        self._nodes: dict[int, int] = {}
        self._settings = settings
        self._rule, self._sampler = components.strategy, components.sampler
        self._pipeline = pipeline
        self._cut = cut
        self._states = states
        self._recorded = missing is not None
        self._absent = absent_clients(self._rule, pipeline, settings, missing or {})
        self._sizes = sizes
        self._train = train

    def updates(self, number: int, vector: FloatArray, downlink: Arrays) -> list[Update]:
        """What round `number` sums; its clients begin with the model `vector`, float32 [P], and `downlink`."""
        settings, rule = self._settings, self._rule
        # 1. Who trains, where, in which pieces.
        known = Known(self._sizes, self.losses)
        cohort = self._sampler.draw_known(settings.seed, number, settings.num_clients, settings.cohort_size, known)
        chunks = self._cut(cohort)
        self._nodes = {chunk.id: chunk.node for chunk in chunks}
        # 2. Each chunk trains from the same global model.
        here = self._absent[number] if self._recorded else late_clients(rule, chunks, settings.cohort_size)
        trained = self._train(answered_chunks(rule, chunks, here), number, vector, downlink, self._states)
        updates = [self._pipeline.on_server(update, vector) for update in trained if update.client not in here]
        if not updates:
            raise BadInput(f"round {number} lacks all of its clients: nothing can be aggregated")
        self.losses = losses_after(self._sampler, self.losses, updates, chunks, settings.num_clients)
        return updates

    def node_of(self, update: Update) -> int:
        """The node, by its place, of an update of the newest round."""
        return self._nodes[update.chunk]
