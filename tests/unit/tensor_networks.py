"""Networks with tensors of several roles, each a model of its own, and federated training of them in a few lines."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.learning.engines import ClientData
from fedsim.learning.examples import DataSet, Examples
from fedsim.learning.models import Model
from fedsim.learning.partitions import make_partition
from fedsim.settings import TaskSettings

INPUTS, CLASSES = 4, 2
Shared = dict[str, Tensor]


def data() -> DataSet:
    rng = np.random.default_rng(3)
    features = (rng.normal(size=(60, INPUTS)) * [1, 5, 0.2, 1] + [0, 3, 0, -2]).astype(np.float32)
    examples = Examples(features, (features[:, 0] > 0).astype(np.int64))
    return DataSet(examples, examples, CLASSES)


SETTINGS = TaskSettings(
    partition="iid",
    num_clients=3,
    fraction_train=1.0,
    local_epochs=3,
    local_batch_size=7,
    local_learning_rate=0.1,
    num_rounds=3,
    evaluate_every=1,
    model_seed=5,
)


class Normalised(Model):
    """Two linear layers with batch normalisation between them."""

    momentum: float | None = 0.1

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        layers = nn.Linear(*feature_shape, 5), nn.BatchNorm1d(5, momentum=self.momentum), nn.ReLU()
        return nn.Sequential(*layers, nn.Linear(5, num_classes))


class Cumulative(Normalised):
    """Its running statistics are means over all batches, which `num_batches_tracked` counts."""

    momentum = None


class FrozenBase(Normalised):
    """Its first layer is not trained, and a mask of whole numbers is part of its state."""

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        network = super().build(feature_shape, num_classes)
        network.get_submodule("0").requires_grad_(False)
        network.register_buffer("mask", torch.randint(100, (3,)))
        return network


class _Tied(nn.Module):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.two.weight = self.one.weight
        self.head = nn.Linear(width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.two(self.one(features).relu()).relu())
        return outputs


class Tied(Model):
    """Two layers share a weight."""

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return _Tied(*feature_shape, num_classes)


class Half(Normalised):
    """All its floats are bfloat16."""

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return super().build(feature_shape, num_classes).to(torch.bfloat16)


def federated(
    network: Callable[[], nn.Module],
    settings: TaskSettings = SETTINGS,
    personal: Collection[str] = (),
    trains: Callable[[int, bool], bool] = lambda _epoch, _personal: True,
    mode: Callable[[nn.Module], object] = nn.Module.train,
) -> tuple[Shared, dict[int, Shared]]:
    """The averaged and the clients' personal tensors after all rounds of FedAvg.

    `network` makes the initial one; `trains(epoch, personal)` says whether such a parameter is trained in an epoch.
    """
    examples = data().train
    own = ClientData(settings, examples, make_partition(settings, examples.labels))
    floats = [name for name, tensor in network().state_dict().items() if tensor.is_floating_point()]
    frozen = {name for name, parameter in network().named_parameters() if not parameter.requires_grad}
    shared = {name: network().state_dict()[name] for name in floats if name not in personal and name not in frozen}
    kept: dict[int, Shared] = {}
    for number in range(1, settings.num_rounds + 1):
        totals = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in shared.items()}
        for client in range(settings.num_clients):
            model = network()
            model.load_state_dict({**model.state_dict(), **shared, **kept.get(client, {})})
            mode(model)
            x, y = (torch.from_numpy(array) for array in own.examples(client))
            for count, epoch in enumerate(own.epochs(number, client)):
                chosen = [
                    parameter
                    for name, parameter in model.named_parameters()
                    if name not in frozen and trains(count, name in personal)
                ]
                optimizer = torch.optim.SGD(chosen, settings.local_learning_rate)
                for batch in torch.from_numpy(epoch).split(settings.local_batch_size):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                    optimizer.step()
            state = model.state_dict()
            kept[client] = {name: state[name].clone() for name in personal}
            for name in shared:
                totals[name] += len(x) * state[name].double()
        shared = {name: (total / len(examples)).float() for name, total in totals.items()}
    return shared, kept
