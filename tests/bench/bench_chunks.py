"""What a node's daemon spends on the chunks of a round besides their training: its main loop must never be held up.

A task runs over stub workers, which answer at once; the updates and everything else on the disk are real. `round` is
the daemon's time from the first answer to the last one of the round, `turn` the longest time for one of them. `resume`
is the turn in which a daemon that was killed in the middle of the round starts again: half of the updates are there.
"""

from __future__ import annotations

import select
import statistics
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from selectors import DefaultSelector
from typing import Any, Self

import numpy as np
from harness.measure import Options, bench_folder
from harness.results import Row

from fedsim.array_layout import Layout
from fedsim.client import task as client_task
from fedsim.client.audit_log import AuditLog
from fedsim.client.context import NodeContext
from fedsim.client.task import NodeTask
from fedsim.config import ClientConfig
from fedsim.messages import Assignment, Broadcast, Chunk, EngineInfo, ModelSpec, Uplink
from fedsim.metrics import NodeMetrics
from fedsim.runtime.outbox import Outbox
from fedsim.runtime.writer import Writer
from fedsim.settings import TaskSettings
from fedsim.spool.durable import write_json
from fedsim.spool.files import FileId, Kind, Role, metadata_path
from fedsim.spool.layout import Spool
from fedsim.spool.npy import write_vector
from fedsim.spool.updates import write_update
from fedsim.update import PARAMETERS, Update
from fedsim.wire.peer import Identity, Peer
from fedsim.worker import jobs
from fedsim.worker.forking import ForkServers

UID = "5" * 32
CHUNKS, QUICK_CHUNKS = (32, 100, 300), (8,)


class StubPool:
    """Workers that do nothing; what they answer is put into `coming`."""

    versions: tuple[str, ...] = ()
    idle = deaths = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        self.coming: list[jobs.Reply] = []

    def start(self) -> Self:
        """Nothing to start."""
        return self

    def submit(self, _: jobs.Job, __: str | None) -> None:
        """Ignore a job."""

    def replies(self) -> tuple[list[jobs.Reply], str | None]:
        """What was put here."""
        coming, self.coming = self.coming, []
        return coming, None

    def close(self) -> None:
        """Nothing to close."""


def assignment(chunks: int) -> Assignment:
    """A task of one client a chunk, all on this node."""
    settings = TaskSettings(dataset="digits", num_clients=chunks, fraction_train=1.0)
    return Assignment(
        task=UID,
        number=1,
        settings=settings,
        first_client=0,
        num_clients=chunks,
        model_spec=ModelSpec.of(settings, (8, 8), 10),
        engine=EngineInfo(),
        uplink=Uplink.SUM,
    )


def train(folder: Path, chunk: int) -> jobs.Reply:
    """What a worker does for a chunk, and answers."""
    update = Update(base_round=1, chunk=chunk, num_examples=150, metrics={"train_loss": 0.5})
    update = update.with_arrays({PARAMETERS: np.zeros(10, np.float32)})
    written = write_update(folder, update, Layout({PARAMETERS: (10,)}))
    return jobs.ChunkTrained(round=1, chunk=chunk, updates=(written,), seconds=0.1)


def measure(folder: Path, chunks: int) -> tuple[float, float, float]:
    """Seconds of a whole round, of its longest turn, and of the turn that resumes it in its middle."""
    spool = Spool(folder).open()
    config = ClientConfig.model_validate(
        {
            "name": "a",
            "server": {"port": 9001},
            "spool": folder,
            "data": folder,
            "datasets": [{"name": "digits", "path": "digits", "format": "digits", "access": "open"}],
        }
    )
    path = spool.path(FileId(kind=Kind.GLOBALPARAM, task=UID, round=1), "server")
    digest = write_vector(path, np.zeros(10, np.float32))
    broadcast = Broadcast(chunks=tuple(Chunk(id=number, clients=(number,)) for number in range(chunks)))
    meta = {"sender": "server", "digest": digest, "size": path.stat().st_size, "meta": broadcast.model_dump()}
    write_json(metadata_path(path), meta)
    updates = spool.folder(Kind.LOCALPARAM) / UID
    with (
        DefaultSelector() as selector,
        closing(Outbox.open(Identity("a", Role.CLIENT), None, spool)) as outbox,
        Writer() as writer,
    ):
        servers = ForkServers(selector)
        context = NodeContext(
            config=config,
            spool=spool,
            outbox=outbox,
            writer=writer,
            server=Peer("server", "127.0.0.1", 1),  # where nothing listens
            fork_servers=servers,
            audit_log=AuditLog(folder / "audit.jsonl").open(),
            announce=lambda: None,
            metrics=NodeMetrics(),
        )

        def resumed() -> NodeTask:
            running = NodeTask(assignment(chunks), context)
            running.start(None)
            while running._queue.held:
                select.select([writer], [], [])
                writer.dispatch()
            return running

        def turns(running: NodeTask, numbers: range) -> list[float]:
            lengths = []
            for number in numbers:
                running._pool.coming.append(train(updates, number))  # type: ignore[union-attr]
                started = time.perf_counter()
                running.workers_ready()
                lengths.append(time.perf_counter() - started)
            return lengths

        running = resumed()
        first = turns(running, range(chunks // 2))
        running.quit()
        started = time.perf_counter()
        running = resumed()
        resume = time.perf_counter() - started
        second = turns(running, range(chunks // 2, chunks))
        running.quit()
        servers.close()
    return sum(first + second), max(first + second), resume


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    client_task.WorkerPool = StubPool  # type: ignore[misc,assignment]
    for chunks in QUICK_CHUNKS if options.quick else CHUNKS:
        found = []
        for _ in range(options.repeats):
            with bench_folder() as folder:
                found.append(measure(folder, chunks))
        whole, turn, resume = (statistics.median(values) for values in zip(*found, strict=True))
        yield Row("a node's daemon in a round, besides training", whole, "s", note=f"{chunks} chunks")
        yield Row("its longest turn", turn, "s", note=f"{chunks} chunks")
        yield Row("the turn that resumes it in the middle of a round", resume, "s", note=f"{chunks} chunks")
