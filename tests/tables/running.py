"""How rows of tables are run: one thread, so that a digest does not depend on the number of processors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from presence import DATA
from torch import nn

from fedsim.config import DataSetConfig
from fedsim.data import DataSet, load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.engines.batched import BatchedEngine
from fedsim.learning.simulate import SimulationResult, simulate
from fedsim.settings import TaskSettings

Build = Callable[[tuple[int, ...], int], nn.Module]


@cache
def mnist() -> DataSet:
    """Full MNIST, from the folder of real data, see `presence`."""
    return load_dataset(DataSetConfig(name="mnist", path=Path("mnist")), DATA)


def run(settings: Mapping[str, Any], dataset: DataSet, model: Build | None = None) -> SimulationResult:
    """Run a task with the engine that trains clients together where it can."""
    make_deterministic(1)
    return simulate(TaskSettings.model_validate(settings), dataset, model=model, engine=BatchedEngine)
