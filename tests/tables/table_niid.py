"""Accuracy on MNIST with unevenly divided data: Li et al. 2022, "Federated learning on non-IID data silos: an
experimental study" (NIID-Bench), table III.

10 parties, all of them in each of 50 rounds, 10 local epochs, batches of 64, SGD with learning rate 0.01, momentum 0.9
and weight decay 1e-5; a network of two convolutions and three linear layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev

from records import Found, Row
from running import mnist, run
from torch import nn

STRATEGIES = {"fedavg": {}, "fedprox": {"mu": 0.01}, "scaffold": {}, "fednova": {}}
DATA = {
    "labels-1": ("labels_per_client", {"labels": 1}, (0,)),
    "labels-2": ("labels_per_client", {"labels": 2}, (0,)),
    "labels-3": ("labels_per_client", {"labels": 3}, (0,)),
    "dirichlet-0.5": ("dirichlet", {"alpha": 0.5}, (0, 1, 2)),
}
SHOWN = {"labels-1": "1 label each", "labels-2": "2 labels each", "labels-3": "3 labels each"}
# Mean and standard deviation of three runs, in percent.
PUBLISHED = {
    "labels-1": {"fedavg": (29.8, 7.9), "fedprox": (40.9, 23.1), "scaffold": (9.9, 0.2), "fednova": (39.2, 22.1)},
    "labels-2": {"fedavg": (97.0, 0.4), "fedprox": (96.4, 0.3), "scaffold": (95.9, 0.3), "fednova": (94.5, 1.5)},
    "labels-3": {"fedavg": (98.0, 0.2), "fedprox": (97.9, 0.4), "scaffold": (96.6, 1.5), "fednova": (98.0, 0.3)},
    "dirichlet-0.5": {"fedavg": (98.9, 0.1), "fedprox": (98.9, 0.1), "scaffold": (99.0, 0.1), "fednova": (98.9, 0.1)},
}
LEAST_TOLERANCE = 0.5
"""Points that a result may be off, where two of the published standard deviations are less."""
NOT_JUDGED = "labels-1"


def simple_cnn(feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two convolutions of 5 × 5 with 6 and 16 channels, each with ReLU and pooling; then 120, 84 and the classes."""
    channels, height, width = feature_shape if len(feature_shape) == 3 else (1, *feature_shape)
    left = 16 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
    return nn.Sequential(
        nn.Unflatten(1, (channels, height)) if len(feature_shape) == 2 else nn.Identity(),
        nn.Conv2d(channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(left, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


def rows() -> Sequence[Row]:
    """Each strategy with each division of the data."""
    return [
        Row(
            f"{data}-{strategy}-seed{seed}",
            {
                "partition": partition,
                "partition_options": options,
                "strategy": strategy,
                "strategy_options": chosen,
                "num_clients": 10,
                "fraction_train": 1.0,
                "local_epochs": 10,
                "local_batch_size": 64,
                "local_learning_rate": 0.01,
                "optimizer_options": {"momentum": 0.9, "weight_decay": 1e-5},
                "num_rounds": 50,
                "evaluate_every": 10,
                "seed": seed,
            },
        )
        for data, (partition, options, seeds) in DATA.items()
        for strategy, chosen in STRATEGIES.items()
        for seed in seeds
    ]


def compute(row: Row) -> Found:
    """The accuracy after the last round."""
    result = run(row.settings, mnist(), simple_cnn)
    return Found({"accuracy": result.rounds[-1].metrics["accuracy"]}, result.digest)


def deviation(data: str, strategy: str, accuracies: Sequence[float]) -> tuple[float, float]:
    """How far the mean accuracy, in percent, is from the published one, and how far it may be."""
    mean, spread = PUBLISHED[data][strategy]
    return abs(fmean(accuracies) - mean), max(2 * spread, LEAST_TOLERANCE)


def markdown(found: Mapping[str, Found]) -> str:
    """A line for each division, with a column for each strategy."""
    lines = [f"| data | {' | '.join(STRATEGIES)} |", f"| --- |{' --- |' * len(STRATEGIES)}"]
    for data, (_, _, seeds) in DATA.items():
        cells = []
        for strategy in STRATEGIES:
            names = [f"{data}-{strategy}-seed{seed}" for seed in seeds]
            accuracies = [
                100 * value
                for name in names
                if name in found and (value := found[name].figures["accuracy"]) is not None
            ]
            mean, spread = PUBLISHED[data][strategy]
            ours = f"{fmean(accuracies):.1f}" if accuracies else "–"
            if len(accuracies) > 1:
                ours += f" ± {pstdev(accuracies):.1f}"
            cells.append(f"{ours} (paper {mean} ± {spread})")
        lines.append(f"| {SHOWN.get(data, 'Dirichlet 0.5')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
