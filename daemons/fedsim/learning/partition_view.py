"""What a partition gives to whom: the labels of each client as numbers, as a picture, and how much they differ."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.learning.components import Components
from fedsim.learning.examples import DataSet, IntArray
from fedsim.learning.partitions import partition_of
from fedsim.settings import TaskSettings

MAX_SHOWN = 100
"""Most clients in a picture."""
SHADES = " ░▒▓█"
_CELL = 16


@dataclass(frozen=True)
class PartitionView:
    """The labels of each client.

    Attributes:
        counts: int64 [num_clients, num_classes], how many examples of each label a client holds.
    """

    counts: IntArray

    @property
    def sizes(self) -> IntArray:
        """Examples of each client, int64 [num_clients]."""
        sizes: IntArray = self.counts.sum(axis=1)
        return sizes

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """The label distribution of each client, float64 [num_clients, num_classes]; zeros if it holds nothing."""
        shares: NDArray[np.float64] = self.counts / np.maximum(self.sizes, 1)[:, None]
        return shares

    @property
    def distances(self) -> NDArray[np.float64]:
        """How far each client's label distribution is from that of all clients together, float64 [num_clients].

        The total variation distance, half the sum of absolute differences: 0 if they are alike, 1 if they share no
        label. Twice this number is the "EMD" of Zhao et al. 2018, "Federated learning with non-IID data".
        """
        together = self.counts.sum(axis=0) / max(1, int(self.counts.sum()))
        distances: NDArray[np.float64] = np.abs(self.shares - together).sum(axis=1) / 2
        return distances

    @property
    def mean_distance(self) -> float:
        """The mean of `distances`, each client weighted by its examples."""
        return float(self.distances @ self.sizes) / max(1, int(self.sizes.sum()))

    @property
    def pair_distance(self) -> float:
        """The mean total variation distance of two clients, over all pairs; 0 if there is one client."""
        count = len(self.counts)
        if count < 2:
            return 0.0
        # Over all pairs the sum of |x - y| of sorted numbers is Σ (2 r - n + 1) x_r.
        ranks = 2 * np.arange(count) - count + 1
        return float((ranks @ np.sort(self.shares, axis=0)).sum()) / (count * (count - 1))

    def __str__(self) -> str:
        """A picture for terminals: a row for each client, a column for each label, dark where it holds much."""
        rows = []
        for client, shares in enumerate(self.shares[:MAX_SHOWN]):
            cells = "".join(SHADES[int(np.ceil(share * (len(SHADES) - 1)))] for share in shares)
            rows.append(f"{client:6} |{cells}| {self.sizes[client]}")
        if len(self.counts) > MAX_SHOWN:
            rows.append(f"       and {len(self.counts) - MAX_SHOWN} more clients")
        about = f"distance from all: {self.mean_distance:.3f}, of two clients: {self.pair_distance:.3f}"
        return "\n".join(["client  labels, examples", *rows, about])

    def svg(self) -> str:
        """The picture as SVG: a disc for each client (to the right) and label (down), with an area by its examples."""
        shown = self.counts[:MAX_SHOWN]
        most = max(1, int(shown.max(initial=0)))
        width, height = (_CELL * (length + 2) for length in shown.shape)
        discs = [
            f'<circle cx="{_CELL * (client + 1.5):g}" cy="{_CELL * (label + 1.5):g}" '
            f'r="{_CELL / 2 * sqrt(count / most):.2f}"><title>client {client}, label {label}: {count}</title></circle>'
            for client, row in enumerate(shown.tolist())
            for label, count in enumerate(row)
            if count
        ]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" fill="#3566a5">{"".join(discs)}</svg>\n'
        )

    def _repr_svg_(self) -> str:
        """For notebooks."""
        return self.svg()


def view_partition(settings: TaskSettings, dataset: DataSet, *, partition: Any = None) -> PartitionView:
    """How a task would divide a data set among its clients; nothing is trained.

    Args:
        settings: the task's.
        dataset: that all nodes hold; with partition `local` one node's.
        partition: an object, or a class that is made with its default options, instead of what the settings name.

    Raises:
        BadInput: the data set cannot be divided so.
    """
    partitioner = Components.of(settings, partition=partition).partitioner
    strata = dataset.train.strata
    divided = partition_of(settings, dataset.train, partitioner)
    length = max(dataset.num_classes, int(strata.max(initial=0)) + 1)
    counts = [np.bincount(strata[divided.indices(k)], minlength=length) for k in range(divided.num_clients)]
    return PartitionView(np.array(counts, np.int64))
