"""What codecs save and cost: the bytes of an update and the final accuracy with each, next to no codec.

A 2NN on the handwritten digits of scikit-learn (1,797 images of 8 × 8 pixels), two labels for most clients, through
`simulate`: 20 clients on four nodes, 10 a round. An update is a node's sum. Accuracies are of three seeds, with their
median; the same seeds with each codec, so that rows can be compared with each other.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from harness.measure import Options
from harness.results import Row, ratio_at_most

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.aggregate import uplink_layout
from fedsim.learning.engine import make_deterministic
from fedsim.learning.engines.batched import BatchedEngine
from fedsim.learning.examples import DataSet
from fedsim.learning.simulate import simulate
from fedsim.learning.strategies import make_strategy
from fedsim.learning.transforms import make_pipeline
from fedsim.settings import parse_settings
from fedsim.spool.npy import write_parts

TASK: dict[str, Any] = {
    "dataset": "digits",
    "model": "2nn",
    "partition": "shards",
    "num_clients": 20,
    "fraction_train": 0.5,
    "local_epochs": 5,
    "local_learning_rate": 0.1,
}
PLACEMENT = [(0, 5), (5, 5), (10, 5), (15, 5)]
ROUNDS, QUICK_ROUNDS = 20, 5
SEEDS, QUICK_SEEDS = (0, 1, 2), (0,)
NONE = "no codec"
TENTH, HUNDREDTH = ({"topk": {"fraction": share}} for share in (0.1, 0.01))
WITHOUT_FEEDBACK = {"topk": {"fraction": 0.01, "error_feedback": False}}
CHAINS: tuple[tuple[str, str, dict[str, Any], float | None], ...] = (
    # name, transforms, their options, the largest share of the bytes
    (NONE, "", {}, None),
    ("difference", "difference", {}, 1.0),
    ("float16", "float16", {}, 0.502),
    ("bfloat16", "bfloat16", {}, 0.502),
    ("difference, bfloat16", "difference,bfloat16", {}, 0.502),
    ("int8", "int8", {}, 0.254),
    ("difference, int8", "difference,int8", {}, 0.254),
    ("difference, topk 10 %", "difference,topk", TENTH, 0.202),
    ("difference, topk 1 %", "difference,topk", HUNDREDTH, 0.022),
    ("difference, topk 1 % without error feedback", "difference,topk", WITHOUT_FEEDBACK, 0.022),
    ("difference, topk 10 %, int8", "difference,topk,int8", TENTH, 0.128),
)


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    make_deterministic(1)
    seeds = QUICK_SEEDS if options.quick else SEEDS
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        description = {"name": "digits", "path": "digits", "format": "digits"}
        dataset = load_dataset(DataSetConfig.model_validate(description), Path(folder))
        plain_size, plain_accuracy = 0.0, 0.0
        for name, transforms, chosen, most in CHAINS:
            settings = {**TASK, "num_rounds": rounds, "evaluate_every": rounds, "save_every": rounds}
            settings |= {"transforms": transforms, "transforms_options": chosen}
            size = float(bytes_of_update(settings, Path(folder) / "update.npy"))
            accuracies = [accuracy({**settings, "seed": seed}, dataset) for seed in seeds]
            middle = statistics.median(accuracies)
            note = ", ".join(f"{value:.3f}" for value in accuracies)
            if most is None:
                plain_size, plain_accuracy = size, middle
                yield Row(f"bytes of an update, {name}", size, "B")
                yield Row(f"accuracy after {rounds} rounds, {name}", middle, note=note)
            else:
                bar = ratio_at_most(most)
                yield Row(f"bytes of an update, {name}", size, "B", NONE, plain_size, bar=bar)
                yield Row(f"accuracy after {rounds} rounds, {name}", middle, "", NONE, plain_accuracy, note=note)


def bytes_of_update(settings: dict[str, Any], path: Path) -> int:
    """The size of an update's file, with its header."""
    parsed, _ = parse_settings(settings)
    strategy = make_strategy(parsed)
    num_parameters = 64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10
    layout = make_pipeline(parsed, strategy).layout(uplink_layout(strategy, num_parameters))
    write_parts(path, layout.dtype, (layout.size,), [np.zeros(layout.size, layout.dtype)])
    return path.stat().st_size


def accuracy(settings: dict[str, Any], dataset: DataSet) -> float:
    """On the test set, after the last round."""
    result = simulate(parse_settings(settings)[0], dataset, placement=PLACEMENT, engine=BatchedEngine)
    return float(result.rounds[-1].metrics["accuracy"] or 0.0)
