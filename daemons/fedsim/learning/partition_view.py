"""What a partition gives to whom: the labels of each client as numbers, as a picture, and how much they differ."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data_schema import DataSchema
from fedsim.errors import BadInput
from fedsim.label_counts import NamedCounts
from fedsim.learning.examples import DataSet, IntArray
from fedsim.learning.partition_picture import MAX_CLIENTS, draw_partition
from fedsim.learning.partitions import Partition, make_partition, make_partitioner, partition_of
from fedsim.messages import DataSetInfo
from fedsim.settings import TaskSettings

SHADES = " ░▒▓█"


@dataclass(frozen=True)
class PartitionView:
    """The labels of each client.

    Attributes:
        counts: int64 [num_clients, num_labels], how many examples of each label a client holds.
        labels: what each label is called; without names they are numbered.
        clients: what each client is called; without names they are numbered.
        exact: whether the counts are those of the task; otherwise only the sizes are, and the labels are an example of
            what the partition does (see `view_counts`).
    """

    counts: IntArray
    labels: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    exact: bool = True

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name or number of each label."""
        return self.labels or tuple(map(str, range(self.counts.shape[1])))

    @cached_property
    def sizes(self) -> IntArray:
        """Examples of each client, int64 [num_clients]."""
        sizes: IntArray = self.counts.sum(axis=1)
        return sizes

    @property
    def size_quantiles(self) -> tuple[float, float, float, float, float]:
        """The least size of a client, the quartiles, and the largest."""
        least, low, middle, high, most = map(float, np.quantile(self.sizes, (0, 0.25, 0.5, 0.75, 1)))
        return least, low, middle, high, most

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """The label distribution of each client, float64 [num_clients, num_labels]; zeros if it holds nothing."""
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
        names = [str(client) for client in self.clients or range(len(self.counts))][:MAX_CLIENTS]
        room = max(6, *map(len, names))
        rows = []
        for client, shares in enumerate(self.shares[:MAX_CLIENTS]):
            cells = "".join(SHADES[int(np.ceil(share * (len(SHADES) - 1)))] for share in shares)
            rows.append(f"{names[client]:>{room}} |{cells}| {self.sizes[client]}")
        if len(self.counts) > MAX_CLIENTS:
            rows.append(f"{' ' * room} and {len(self.counts) - MAX_CLIENTS} more clients")
        about = f"distance from all: {self.mean_distance:.3f}, of two clients: {self.pair_distance:.3f}"
        return "\n".join([f"{'client':>{room}}  labels, examples", *rows, about])

    def svg(self) -> str:
        """The picture as SVG: a disc for each client (to the right) and label (down), with an area by its examples."""
        return draw_partition(self.counts, self.label_names, self.clients)

    def _repr_svg_(self) -> str:
        """For notebooks."""
        return self.svg()

    def document(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "num_clients": len(self.counts),
            "exact": self.exact,
            "clients": list(self.clients),
            "labels": list(self.label_names),
            "sizes": self.sizes.tolist(),
            "counts": self.counts.tolist(),
            "distances": self.distances.tolist(),
            "mean_distance": self.mean_distance,
            "pair_distance": self.pair_distance,
        }

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> PartitionView:
        """The view that `document` describes."""
        counts = np.array(document["counts"], np.int64).reshape(document["num_clients"], len(document["labels"]))
        return cls(counts, tuple(document["labels"]), tuple(document["clients"]), document["exact"])

    def csv_rows(self) -> Iterator[list[str | int | float]]:
        """A heading and a row for each client, for CSV; the columns of labels are `label_…`."""
        yield ["client", "num_examples", "distance", *(f"label_{name}" for name in self.label_names)]
        names: Sequence[str | int] = self.clients or range(len(self.counts))
        for name, size, distance, counts in zip(
            names, self.sizes.tolist(), self.distances.tolist(), self.counts.tolist(), strict=True
        ):
            yield [name, size, distance, *counts]


def view_partition(settings: TaskSettings, dataset: DataSet, *, partition: Any = None) -> PartitionView:
    """How a task would divide a data set among its clients; nothing is trained.

    Args:
        settings: the task's.
        dataset: that all nodes hold; with partition `local` one node's.
        partition: an object, or a class that is made with its default options, instead of what the settings name.

    Raises:
        BadInput: the data set cannot be divided so.
    """
    partitioner: Any = partition() if inspect.isclass(partition) else partition
    strata = dataset.train.strata
    divided = partition_of(settings, dataset.train, partitioner)
    counts = _count(divided, strata, strata_length(strata, dataset.num_classes))
    return PartitionView(counts, strata_names(dataset.data_schema, counts.shape[1]))


@dataclass(frozen=True)
class KnownLabels:
    """What is known of a node's training examples: how many there are, and how many have each label (None: few)."""

    node: str
    num_train: int
    counts: NamedCounts


def view_known(settings: TaskSettings, known: Sequence[KnownLabels], rest: str = "others") -> PartitionView:
    """How a task would divide data of which only the number of examples of each label is known.

    The sizes are those of the task. The labels are too if they follow from these numbers (`Partitioner.from_counts`);
    otherwise they are those of a data set with its examples in another order.

    Args:
        settings: the task's.
        known: of each node, if the partition makes each node's data a client; otherwise of one, as all have the same.
        rest: what the labels are called together whose number is not known.

    Raises:
        BadInput: the examples cannot be divided so, or nothing about this partition follows from these numbers.
    """
    partitioner = make_partitioner(settings)
    names = list(dict.fromkeys(name for one in known for name in one.counts))
    table = np.array([[one.counts.get(name) or 0 for name in names] for one in known], np.int64)
    # Rounded counts add up to less than all although no label is missing.
    some = np.array([None in one.counts.values() for one in known])
    left = some * np.maximum(np.array([one.num_train for one in known], np.int64) - table.sum(axis=1), 0)
    shown = [column for column, name in enumerate(names) if any(one.counts.get(name) is not None for one in known)]
    table, names = table[:, shown], [names[column] for column in shown]
    if (left > 0).any():
        table, names = np.concatenate([table, left[:, None]], axis=1), [*names, rest]
    if partitioner.per_node:
        return PartitionView(table, tuple(names), tuple(one.node for one in known))
    if not partitioner.from_counts:
        raise BadInput(f"what clients hold with the partition {settings.partition} depends on more than the labels")
    strata = np.repeat(np.arange(len(names), dtype=np.int64), table[0])
    counts = _count(make_partition(settings, strata, partitioner), strata, len(names))
    exact = partitioner.from_counts == "labels" and not (left > 0).any()
    return PartitionView(counts, tuple(names), exact=exact)


def named_counts(info: DataSetInfo) -> NamedCounts | None:
    """The counts of labels that a node announced, by the labels' names; None if it shows none.

    Counts of more examples than it has are none: they would decide how much memory a picture needs.
    """
    if info.label_counts is None or sum(count or 0 for count in info.label_counts) > info.num_train:
        return None
    names = strata_names(info.data_schema, len(info.label_counts)) or map(str, range(len(info.label_counts)))
    return dict(zip(names, info.label_counts, strict=True))


def strata_length(strata: IntArray, num_classes: int) -> int:
    """How many labels partitions tell apart in examples of these strata, int64 [n]."""
    return max(num_classes, int(strata.max(initial=0)) + 1)


def strata_names(schema: DataSchema | None, length: int) -> tuple[str, ...]:
    """What the labels that partitions see are called, see `Examples.strata`; empty: they have numbers."""
    if schema is None:
        return ()
    if schema.targets == "numbers":
        return tuple(f"tenth {number + 1}" for number in range(length))
    words = schema.labels[:length]
    return (*words, *("none" if schema.targets == "flags" else str(rest) for rest in range(len(words), length)))


def _count(divided: Partition, strata: IntArray, length: int) -> IntArray:
    """The examples of each label (of `length`) at each client, int64 [num_clients, length]."""
    counts = [np.bincount(strata[divided.indices(k)], minlength=length) for k in range(divided.num_clients)]
    return np.array(counts, np.int64)
