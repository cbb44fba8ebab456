"""What a task on a node gives its workers to do, and the files that they read and write."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from fedsim.client.context import NodeContext
from fedsim.client.guards import guard_orders, query_digest
from fedsim.data_schema import COMMON
from fedsim.errors import BadInput
from fedsim.learning.cohort import slots
from fedsim.learning.column_statistics import StatisticsRule
from fedsim.learning.common_scale import Scale, fitted
from fedsim.learning.strategies import make_strategy
from fedsim.learning.transforms import make_pipeline
from fedsim.log import get_logger
from fedsim.memory import installed_memory
from fedsim.messages import Assignment, Broadcast, Chunk, read_message
from fedsim.spool.clear import clear_file
from fedsim.spool.client_states import keep_states, take_states
from fedsim.spool.durable import remove_file
from fedsim.spool.files import FileId, Kind
from fedsim.spool.layout import read_metadata
from fedsim.spool.updates import UpdateIndex
from fedsim.state_machines.node_events import ClearGlobals, ClearUsedUpdates
from fedsim.state_machines.own_engines import with_private_options
from fedsim.worker import jobs
from fedsim.worker.pool import WorkerPool

GONE: Final = "what its clients kept when it ended is no longer on this node (keep_client_states)"


class NodeTaskJobs:
    """The jobs of one task, and where its files are."""

    def __init__(self, assignment: Assignment, context: NodeContext) -> None:
        self.updates = context.spool.folder(Kind.LOCALPARAM) / assignment.task
        self._assignment = assignment
        self._context = context
        self._log = get_logger(task=assignment.number)
        self._has_states = False

    @property
    def workers(self) -> int:
        """How many workers the task has here: those of the plan, or of client.yml."""
        return self._assignment.workers or self._context.config.fixed_workers or 1

    # ------------------------------------------------------------ jobs

    def load(self) -> jobs.Load | None:
        """Load the task's data; None if its data set is not configured."""
        config = self._context.config
        name = self._assignment.settings.dataset
        dataset = next((dataset for dataset in config.datasets if dataset.name == name), None)
        if dataset is None:
            return None
        engine = with_private_options(self._assignment.engine, config)
        return jobs.Load(
            assignment=self._assignment.model_copy(update={"engine": engine}),
            dataset=dataset,
            folder=config.data,
            min_examples=config.institution.min_examples,
            client_figures=config.institution.least_shown,
            max_parameters=config.institution.max_parameters,
            max_memory_bytes=self._memory_of_worker,
            installed_memory_bytes=installed_memory() // self.workers,
            guard=self._guard,
            statistics=StatisticsRule(
                allowed=config.institution.statistics,
                min_count=config.institution.min_count,
                guarded=dataset.access == "guarded",
            ),
        )

    def start_workers(self, version: str, first: jobs.Load, on_ready: Callable[[], None]) -> WorkerPool:
        """Start the task's workers, of a version of fedsim; each loads the data, and `on_ready` hears of replies."""
        config = self._context.config
        return WorkerPool(
            [str(number) for number in range(self.workers)],
            self._context.fork_servers,
            on_ready,
            threads=self._assignment.engine.threads,
            max_restarts=config.max_worker_restarts,
            log={"task": self._assignment.number, "node": config.name},
            version=version,
            on_death=self._context.metrics.worker_restarts.inc,
            first=first,
        ).start()

    def take_states(self) -> str | None:
        """Take over what clients kept in the run that this task resumes; returns why that is not possible."""
        former = self._assignment.resumes
        self._has_states = former is None or not self._clients_keep_state or self._take(former)
        return None if self._has_states else GONE

    def keep_states(self) -> None:
        """Store what clients keep, so that the task can go on, unless it was missing from the start."""
        assignment, config = self._assignment, self._context.config
        if self._has_states and self._clients_keep_state:
            keep_states(config.spool, self.updates, assignment.number, assignment.task, config.keep_client_states)

    def _take(self, former: str) -> bool:
        return take_states(self._context.config.spool, self.updates, self._assignment.number, former)

    @property
    def _clients_keep_state(self) -> bool:
        """Whether the strategy's clients, or the transforms' senders, keep a state from round to round."""
        settings = self._assignment.settings
        try:
            strategy = make_strategy(settings)
            return strategy.clients_keep_state(settings) or make_pipeline(settings, strategy).keeps_state(strategy)
        except ValueError:  # its plug-in is not installed: then nothing was trained here
            return False

    @property
    def _guard(self) -> jobs.GuardOrder | None:
        """The division of a guarded data set; None for a task that was planned before it was guarded."""
        if self._assignment.guard is None and query_digest(self._assignment) in self._context.earlier:
            return None
        return guard_orders(self._context.config).get(self._assignment.settings.dataset)

    @property
    def _memory_of_worker(self) -> int | None:
        """Each worker's part of the memory that the institution allows."""
        most = self._context.config.institution.max_memory_bytes
        return None if most is None else most // self.workers

    def train(self, number: int, chunk: Chunk, tested: tuple[int, ...] = ()) -> jobs.Train:
        """Train a chunk from the round's model; what clients kept after the rounds `tested` stays."""
        model = self._global(number)
        digest, scale = read_metadata(model).digest, self._scale(number)
        return jobs.Train(
            round=number,
            chunk=chunk.id,
            clients=chunk.clients,
            slot=self._slot(number, chunk),
            model=model,
            digest=digest,
            out=self.updates,
            scale=scale,
            tested=tested,
        )

    def write_testset(self) -> jobs.WriteTestset:
        """Write the test set to be sent."""
        data, labels = (path for _, path in self.testset())
        return jobs.WriteTestset(data=data, labels=labels)

    def keep_final(self, number: int) -> jobs.SaveCheckpoint:
        """Save the final model, that of `globalparam` `number`, for predictions on this node."""
        assignment, schema = self._assignment, self._assignment.data_schema
        made_in = FileId(kind=Kind.GLOBALPARAM, task=assignment.task, round=number).made_in
        return jobs.SaveCheckpoint(
            settings=assignment.settings,
            model_spec=assignment.model_spec,
            round=made_in,
            model=self._global(number),
            digest=read_metadata(self._global(number)).digest,
            out=self._context.spool.checkpoints / f"task-{assignment.number:06d}.safetensors",
            about={
                "task": assignment.number,
                "uid": assignment.task,
                "round": made_in,
                "settings": assignment.settings.model_dump(mode="json"),
                "data_schema": schema and fitted(schema, self._scale(number)).model_dump(mode="json"),
            },
        )

    # ------------------------------------------------------------ files

    def testset(self) -> list[tuple[FileId, Path]]:
        """The files of the test set, data and labels, whether or not they exist."""
        spool, node = self._context.spool, self._context.config.name
        ids = [FileId(kind=Kind.TESTSET, task=self._assignment.task, part=part) for part in ("data", "label")]
        return [(file, spool.path(file, node)) for file in ids]

    def newest_global(self, current: int, in_use: Collection[int]) -> tuple[int, Broadcast] | None:
        """The newest global model that was received: its round and metadata.

        Models of rounds before the current one were removed, except those `in_use`: any other one that is there was
        received later, and precedes.
        """
        arrived = self._context.spool.arrived(Kind.GLOBALPARAM, self._assignment.task)
        earlier = [item for item in arrived if (item.id.round or 0) < current and item.id.round not in in_use]
        for item in reversed(earlier or arrived):
            try:
                metadata = item.metadata()
                return item.id.round or 0, read_message(Broadcast, metadata.meta, f"metadata of {item.path.name}")
            except BadInput as error:
                self._log.warning("global_model_not_understood", file=item.path.name, problem=str(error))
        return None

    def clear_used(self, action: ClearUsedUpdates, updates: UpdateIndex) -> None:
        """Remove updates that were used, also where they are on their way once more."""
        through, further, task = action.through, set(action.further), self._assignment.task

        def used(file: FileId) -> bool:
            of_round = file.round or 0
            mine = file.task == task and file.kind is Kind.LOCALPARAM
            return mine and (of_round <= through or (of_round, file.chunk) in further)

        self._context.outbox.cancel(used)
        updates.clear(through)
        updates.clear_chunks(further)

    def clear_globals(self, action: ClearGlobals) -> None:
        """Remove global models that no chunk is trained from any more."""
        for item in self._context.spool.arrived(Kind.GLOBALPARAM, self._assignment.task):
            number = item.id.round or 0
            if number not in {action.keep, *action.further} and (action.later or number < action.keep):
                clear_file(item.path)

    def prune_models(self) -> None:
        """Remove all final models except those of the newest tasks."""
        models = sorted(
            self._context.spool.checkpoints.glob("task-*.safetensors"), key=lambda path: path.stat().st_mtime
        )
        for path in models[: -self._context.config.keep_models]:
            remove_file(path)
            remove_file(path.with_suffix(".json"))
            self._log.info("old_model_removed", file=path.name)

    def _scale(self, number: int) -> Scale:
        """The common scaling of the task, which came with `globalparam` `number`; empty for any other scaling."""
        schema = self._assignment.data_schema
        if schema is None or schema.scaling != COMMON:
            return ()
        scale = self._broadcast(number).scale
        if len(scale) != len(schema.features):
            name = self._global(number).name
            raise BadInput(f"{name} has the scaling of {len(scale)} columns, the task has {len(schema.features)}")
        return scale

    def _slot(self, number: int, chunk: Chunk) -> int:
        """The chunk's slot, as `cut_chunks` gives it: the round's chunks are listed in their order."""
        chunks = sorted(each.id for each in self._broadcast(number).chunks)
        return slots(self._assignment.first_client, len(chunks))[chunks.index(chunk.id)]

    def _broadcast(self, number: int) -> Broadcast:
        """The metadata of `globalparam` `number`."""
        path = self._global(number)
        return read_message(Broadcast, read_metadata(path).meta, f"metadata of {path.name}")

    def _global(self, number: int) -> Path:
        return self._context.spool.path(FileId(kind=Kind.GLOBALPARAM, task=self._assignment.task, round=number), "")
