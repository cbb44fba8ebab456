"""What a node's workers do: look at the data, load a task's, send its test set, train chunks."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Literal

import torch

from fedsim.data import inspect_dataset, load_dataset
from fedsim.data.load import dataset_digest
from fedsim.errors import BadInput
from fedsim.learning.engine import SequentialEngine, make_deterministic, train_chunk
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import DataSet
from fedsim.learning.partition import make_partition
from fedsim.messages import Update
from fedsim.spool.npy import open_vector, write_array
from fedsim.spool.updates import OwnUpdates
from fedsim.worker.jobs import (
    ChunkTrained,
    ClientDiverged,
    DataLoaded,
    DataSetInspected,
    Done,
    HostInspected,
    Inspect,
    InspectHost,
    JobFailed,
    Load,
    NodeJob,
    Reply,
    Train,
    WriteTestset,
)


class NodeJobs:
    """One worker's work for one task: data and engine stay in memory from `Load` on."""

    def __init__(self, threads: int) -> None:
        make_deterministic(threads)
        self._dataset: DataSet | None = None
        self._engine: SequentialEngine | None = None

    def do(self, job: NodeJob) -> Reply:
        """Do one job; raises `BadInput` where what was given cannot be used."""
        match job:
            case InspectHost(device=device):
                return HostInspected(device=_device(device), processor=_processor(), torch=torch.__version__)
            case Inspect():
                return DataSetInspected(dataset=inspect_dataset(job.dataset, job.folder))
            case Load():
                return self._load(job)
            case WriteTestset():
                return self._write_testset(job)
            case Train():
                return self._train(job)

    def _load(self, job: Load) -> Reply:
        assignment = job.assignment
        settings = assignment.settings
        dataset = load_dataset(job.dataset, job.folder)
        if dataset.feature_shape != assignment.feature_shape or dataset.num_classes > assignment.num_classes:
            raise BadInput(
                f"the data set {job.dataset.name} has features {dataset.feature_shape} and {dataset.num_classes} "
                f"classes, the task wants {assignment.feature_shape} and {assignment.num_classes}"
            )
        if assignment.dataset_digest not in (None, dataset_digest(dataset)):
            raise BadInput(
                f"the data set {job.dataset.name} here is not the one that the task was planned with: it has changed "
                "since; submit the task again"
            )
        partition = make_partition(settings, dataset.train.labels)
        runs = partition.runs(assignment.first_client, assignment.num_clients)
        fewest = min(size for _, size in runs)
        if fewest < job.min_examples:
            reason = (
                f"this institution lets no update leave with fewer than {job.min_examples} examples behind it, "
                f"and a client here would have {fewest}: choose fewer clients"
            )
            return JobFailed(job=job.job, reason=reason, refused=True)
        self._dataset = dataset
        self._engine = SequentialEngine(
            settings, dataset.train, partition, assignment.num_classes, device=assignment.engine.device
        )
        return DataLoaded(num_examples=runs)

    def _write_testset(self, job: WriteTestset) -> Reply:
        if self._dataset is None or self._dataset.test is None:
            raise BadInput("there is no test set to send")
        features, labels = self._dataset.test.arrays()
        write_array(job.data, features)
        write_array(job.labels, labels)
        return Done(job=job.job)

    def _train(self, job: Train) -> Reply:
        if self._engine is None:
            raise BadInput("a chunk came before the data was loaded")
        started = time.monotonic()
        engine = self._engine
        vector = open_vector(job.model)
        own = OwnUpdates(job.out)
        try:
            for update in train_chunk(engine, engine.strategy, job.clients, job.round, vector):
                meta = Update(
                    num_examples=update.num_examples,
                    train_loss=update.train_loss,
                    seconds=time.monotonic() - started,
                )
                client = update.clients[0] if engine.strategy.needs_each_client else None
                own.write(job.round, job.chunk, client, update.vector, meta.model_dump(mode="json"))
        except Diverged as diverged:
            return ClientDiverged(
                round=job.round, client=job.clients[0] if diverged.client is None else diverged.client
            )
        return ChunkTrained(round=job.round, chunk=job.chunk, seconds=time.monotonic() - started)


def _device(wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    if wanted == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise BadInput(
            "client.yml asks for a GPU (`device: cuda`), but torch finds none: install its driver, or use auto"
        )
    return "cpu"


def _processor() -> str:
    """The kind of processor, which equal bytes depend on."""
    if torch.cuda.is_available():
        return f"{_cpu()}; {torch.cuda.get_device_name()}"[:200]
    return _cpu()[:200]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
