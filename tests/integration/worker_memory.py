"""Prints, as JSON, the most anonymous memory that the jobs of a worker need, as multiples of the model's size."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.learning.aggregate import uplink_layout
from fedsim.learning.chunk import train_chunk
from fedsim.learning.components import Components
from fedsim.learning.engine import make_deterministic
from fedsim.learning.engines import ClientData
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.examples import Examples
from fedsim.learning.partitions import make_partition
from fedsim.learning.strategies import make_strategy
from fedsim.learning.transforms import Pipeline
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.spool.npy import open_vector, write_array
from fedsim.spool.updates import update_path, write_update
from fedsim.update import Update
from fedsim.worker.jobs import Aggregate, Evaluate, MakeInitialModel, SaveCheckpoint, TestSetFiles
from fedsim.worker.server_jobs import ServerJobs

UNITS = 4000
"""In each of two hidden layers: a model of 65 MB."""
FEATURES = 64


def anonymous() -> int:
    """This process's anonymous memory, bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) << 10


def peak(work: Callable[[], Any]) -> tuple[Any, int]:
    """What `work` returns, and the largest memory while it ran."""
    ended, largest = threading.Event(), anonymous()

    def watch() -> None:
        nonlocal largest
        while not ended.wait(0.002):
            largest = max(largest, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        return work(), largest
    finally:
        ended.set()
        thread.join()


def main(folder: Path) -> None:
    """Do each job once in `folder`."""
    make_deterministic(1)
    torch.nn.functional.cross_entropy(
        torch.nn.Linear(4, 3)(torch.zeros(2, 4)), torch.zeros(2, dtype=torch.long)
    ).backward()
    options = {"hidden": (UNITS, UNITS)}
    settings = TaskSettings(model="mlp", model_options=options, partition="iid", num_clients=3, local_epochs=1)
    rng = np.random.default_rng(0)
    train = Examples(rng.random((60, FEATURES), dtype=np.float32), rng.integers(0, 10, 60))
    write_array(folder / "data.npy", train.features)
    write_array(folder / "labels.npy", train.labels)
    spec = ModelSpec.of(settings, train.feature_shape, 10)
    server, strategy, components = ServerJobs(1), make_strategy(settings), Components.of(settings)
    base, model = folder / "round-0", folder / "round-1" / "model.npy"
    idle = anonymous()
    peaks: dict[str, int] = {}
    _, peaks["initial"] = peak(lambda: server.do(MakeInitialModel(settings=settings, model_spec=spec, out=base)))
    data = ClientData(settings, train, make_partition(settings, train.labels))

    def train_clients() -> list[Update]:
        trainer, peaks["start"] = peak(lambda: SequentialEngine().start(data, spec, components, "cpu"))
        vector = open_vector(base / "model.npy")
        layout = uplink_layout(strategy, len(vector))

        def train(*clients: int) -> list[Update]:
            trained = train_chunk(trainer, strategy, len(clients), clients, 1, vector, Pipeline())
            return [write_update(folder, update, layout) for update in trained]

        one, peaks["train_one"] = peak(lambda: train(0))
        many, peaks["train_many"] = peak(lambda: train(1, 2))
        return [*one, *many]

    updates = tuple(train_clients())
    files = tuple(update_path(folder, update) for update in updates)
    job = Aggregate(settings=settings, round=1, base=base, updates=updates, files=files, out=model.parent)
    _, peaks["aggregate"] = peak(lambda: server.do(job))
    save = SaveCheckpoint(model_spec=spec, round=1, model=model, out=folder / "model.safetensors", about={})
    _, peaks["checkpoint"] = peak(lambda: server.do(save))
    testset = TestSetFiles(data=folder / "data.npy", labels=folder / "labels.npy")
    evaluate = Evaluate(settings=settings, model_spec=spec, round=1, model=model, testset=testset)
    _, peaks["evaluate"] = peak(lambda: server.do(evaluate))
    size = model.stat().st_size
    sys.stdout.write(json.dumps({name: (most - idle) / size for name, most in peaks.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
