"""What a task on the server gives its workers to do: models made, aggregated, tested and saved, from files to files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedsim.config import DataSetConfig, ServerConfig
from fedsim.learning.common_scale import fitted
from fedsim.server.context import ServerContext
from fedsim.server.projection import TaskProjection, checkpoint_name
from fedsim.server.task_dir import TaskDir
from fedsim.spool.files import Kind
from fedsim.spool.layout import Arrived
from fedsim.spool.updates import file_id
from fedsim.state_machines.plan import Plan
from fedsim.update import Update
from fedsim.worker import jobs
from fedsim.worker.pool import WorkerPool

Submit = Callable[[jobs.Job, str], None]

# One aggregates, the other makes, tests and saves models: no round waits for a test.
AGGREGATOR, EVALUATOR = "aggregator", "evaluator"


class TaskJobs:
    """The jobs of one task, and the files that they read."""

    def __init__(
        self, plan: Plan, context: ServerContext, folder: TaskDir, records: TaskProjection, submit: Submit
    ) -> None:
        self._plan = plan
        self._context = context
        self._folder = folder
        self._records = records
        self._submit = submit

    def start_workers(self, on_ready: Callable[[], None]) -> WorkerPool:
        """Start the task's workers; `on_ready` is called when replies can be read."""
        config = self._context.config
        return WorkerPool(
            (AGGREGATOR, EVALUATOR),
            self._context.fork_servers,
            on_ready,
            threads=config.threads_per_worker,
            max_restarts=config.max_worker_restarts,
            log={"task": self._plan.number},
            version=self._plan.version,
            on_death=self._context.metrics.worker_restarts.inc,
        ).start()

    def make_initial_model(self) -> None:
        """Round 0."""
        plan = self._plan
        self._submit(
            jobs.MakeInitialModel(
                settings=plan.settings,
                model_spec=plan.model_spec,
                initial=plan.initial and self._context.initial_files.file(plan.initial, self._context.config.models),
                max_parameters=self._context.config.limits.max_parameters,
                out=self._folder.new_round(0),
            ),
            EVALUATOR,
        )

    def aggregate(self, number: int, updates: tuple[Update, ...]) -> None:
        """Make the round's model of these updates."""
        self._submit(
            jobs.Aggregate(
                settings=self._plan.settings,
                round=number,
                base=self._folder.round(number - 1),
                digests=self._records.files(number - 1),
                updates=updates,
                files=tuple(self.update_path(update) for update in updates),
                out=self._folder.new_round(number),
            ),
            AGGREGATOR,
        )

    def evaluate(self, number: int) -> None:
        """Test the round's model."""
        plan = self._plan
        self._submit(
            jobs.Evaluate(
                settings=plan.settings,
                model_spec=plan.model_spec,
                round=number,
                model=self._folder.model(number),
                digest=self._records.file_digest(number),
                testset=self._testset_files(),
            ),
            EVALUATOR,
        )

    def save(self, number: int, about: Mapping[str, Any]) -> None:
        """Save the round's model as a checkpoint, with what is to be said about it."""
        plan = self._plan
        self._submit(
            jobs.SaveCheckpoint(
                settings=plan.settings,
                model_spec=plan.model_spec,
                round=number,
                model=self._folder.model(number),
                digest=self._records.file_digest(number),
                out=self._context.spool.checkpoints / checkpoint_name(plan.number, number),
                about=dict(about),
            ),
            EVALUATOR,
        )

    def update_path(self, update: Update) -> Path:
        """Where the receiver puts an update."""
        return self._context.spool.path(file_id(update, self._plan.task), update.node or "")

    def testset(self) -> list[Arrived]:
        """The received parts of the test set from the node that was asked for it, not from others."""
        arrived = self._context.spool.arrived(Kind.TESTSET, self._plan.task)
        return [item for item in arrived if item.sender == self._plan.testset_from]

    def _testset_files(self) -> jobs.TestSetFiles:
        planned = self._plan.data_schema
        schema = planned and fitted(planned, self._folder.common_scale(self._plan))
        if self._plan.testset_from is None:
            config = self._context.config
            dataset = own_dataset(config, self._plan.settings.dataset)
            return jobs.TestSetFiles(dataset=dataset, folder=config.data, data_schema=schema)
        by_part = {item.id.part: item for item in self.testset()}
        data, labels = by_part["data"], by_part["label"]
        digests = (data.metadata().digest, labels.metadata().digest)
        return jobs.TestSetFiles(data=data.path, labels=labels.path, digests=digests, data_schema=schema)


def own_dataset(config: ServerConfig, name: str) -> DataSetConfig | None:
    """The server's own copy of a data set, if it is configured."""
    return next((dataset for dataset in config.datasets if dataset.name == name), None)
