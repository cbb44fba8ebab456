"""How a data set is divided among the clients of a task.

Each node computes the same partition from the same labels and seed, and looks up only the clients that it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from fedsim.errors import BadInput
from fedsim.learning.examples import IntArray
from fedsim.learning.randomness import generator
from fedsim.settings import TaskSettings

SHARDS_PER_CLIENT = 2
DIRICHLET_ATTEMPTS = 20


@dataclass(frozen=True)
class Partition:
    """Which examples belong to whom: client k holds `order[offsets[k]:offsets[k + 1]]`.

    Attributes:
        order: int64 [m], indices of examples, m <= n.
        offsets: int64 [num_clients + 1].
    """

    order: IntArray
    offsets: IntArray

    @property
    def num_clients(self) -> int:
        """The population."""
        return len(self.offsets) - 1

    def num_examples(self, client: int) -> int:
        """How many examples a client holds."""
        return int(self.offsets[client + 1] - self.offsets[client])

    def indices(self, client: int) -> IntArray:
        """A client's examples, int64 [k]: a view, not a copy."""
        return self.order[self.offsets[client] : self.offsets[client + 1]]

    def runs(self, first_client: int, num_clients: int) -> tuple[tuple[int, int], ...]:
        """The sizes of consecutive clients as runs of (how many clients, examples of each), as in `TaskReport`."""
        sizes = np.diff(self.offsets[first_client : first_client + num_clients + 1]).tolist()
        return tuple((len(list(run)), size) for size, run in groupby(sizes))


class LocalPartition(Partition):
    """The node's own data is its one client's, whatever that client's number in the task."""

    def __init__(self, num_examples: int) -> None:
        super().__init__(np.arange(num_examples, dtype=np.int64), np.array([0, num_examples], np.int64))

    def num_examples(self, client: int) -> int:  # noqa: ARG002 - each client that is asked for is this node's one
        """How many examples the node holds."""
        return len(self.order)

    def indices(self, client: int) -> IntArray:  # noqa: ARG002
        """All of them."""
        return self.order

    def runs(self, first_client: int, num_clients: int) -> tuple[tuple[int, int], ...]:
        """One client with everything."""
        if num_clients != 1:
            raise BadInput(
                f"partition local gives a node one client, its own data; it got {num_clients} "
                f"(from client {first_client}): set num_clients to the number of nodes"
            )
        return ((1, len(self.order)),)


def most_clients(settings: TaskSettings, num_examples: int) -> int:
    """How many clients `num_examples` training examples can be divided among; not for `local`.

    Every client needs `min_partition_size` of them; shards are of equal size, and each client takes two.
    """
    if settings.partition == "dirichlet":
        return num_examples // settings.min_partition_size
    shard = -(-settings.min_partition_size // SHARDS_PER_CLIENT)
    return num_examples // shard // SHARDS_PER_CLIENT


def too_many_clients(settings: TaskSettings, num_examples: int, most: int) -> str:
    """What is wrong with a population of more than `most` clients, in words."""
    return (
        f"{settings.num_clients} clients are too many for {num_examples} training examples: with the partition "
        f"{settings.partition} and a least size of {settings.min_partition_size} at most {most} are possible"
    )


def make_partition(settings: TaskSettings, labels: IntArray) -> Partition:
    """Divide a data set as the task's settings say; memory is O(n + num_clients).

    Args:
        settings: `partition`, `num_clients`, `alpha`, `min_partition_size` and `seed` count.
        labels: int64 [n], the training labels.

    Raises:
        BadInput: there are more clients than the examples allow, or a client would hold too few.
    """
    if settings.partition != "local" and settings.num_clients > (most := most_clients(settings, len(labels))):
        raise BadInput(f"num_clients: {too_many_clients(settings, len(labels), most)}")
    match settings.partition:
        case "iid":
            order = generator(settings.seed, "partition iid").permutation(len(labels))
            return _in_shards(order, settings)
        case "shards":
            return _in_shards(np.argsort(labels, kind="stable"), settings)
        case "dirichlet":
            return _dirichlet(labels, settings)
        case "local":
            if len(labels) < settings.min_partition_size:
                raise BadInput(
                    f"min_partition_size: {settings.min_partition_size} are asked for, but only {len(labels)} examples "
                    "are here; take a smaller least size"
                )
            return LocalPartition(len(labels))


def _in_shards(order: IntArray, settings: TaskSettings) -> Partition:
    """Cut the ordered examples into 2·K equal shards, two random ones to each client (McMahan et al. 2017, section 3).

    What is left over after equal shards belongs to nobody.
    """
    num_shards = SHARDS_PER_CLIENT * settings.num_clients
    size = len(order) // num_shards
    dealt = generator(settings.seed, "partition shards").permutation(num_shards)
    shards = order[: num_shards * size].reshape(num_shards, size)[dealt]
    offsets = np.arange(settings.num_clients + 1, dtype=np.int64) * (SHARDS_PER_CLIENT * size)
    return Partition(shards.reshape(-1), offsets)


def _dirichlet(labels: IntArray, settings: TaskSettings) -> Partition:
    """Deal each class to the clients in shares drawn from Dirichlet(alpha), until each client holds enough.

    Yurochkin et al. 2019 ("Bayesian nonparametric federated learning of neural networks", section 4); alpha is the
    concentration of Hsu et al. 2019. Sizes and class mixtures both differ among the clients; every example is dealt.
    """
    clients, wanted = settings.num_clients, settings.min_partition_size
    best = 0
    for attempt in range(DIRICHLET_ATTEMPTS):
        rng = generator(settings.seed, "partition dirichlet", attempt)
        owner = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            # Gamma draws, normalised, are Dirichlet draws; with a tiny alpha all of them may underflow to zero.
            shares = rng.gamma(settings.alpha, size=clients)
            ends = np.cumsum(shares)
            if not ends[-1] > 0:
                ends = np.cumsum(np.eye(1, clients, int(rng.integers(clients))).ravel())
            ends = np.floor(ends / ends[-1] * len(members)).astype(np.int64)
            ends[-1] = len(members)
            owner[members] = np.searchsorted(ends, np.arange(len(members)), side="right")
        sizes = np.bincount(owner, minlength=clients)
        best = max(best, int(sizes.min()))
        if sizes.min() >= wanted:
            offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
            return Partition(np.argsort(owner, kind="stable"), offsets)
    raise BadInput(
        f"min_partition_size: in {DIRICHLET_ATTEMPTS} draws with alpha {settings.alpha} the smallest of {clients} "
        f"clients never held more than {best} of {len(labels)} training examples, {wanted} are asked for; "
        "take a larger alpha, fewer clients or a smaller min_partition_size"
    )
