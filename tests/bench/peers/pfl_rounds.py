"""A setting of the benchmark `training` in pfl, given as JSON on the command line; runs in pfl's environment.

Prints the seconds of each round as JSON, after two @.
"""

import json
import sys
import time

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn

IMAGES, INK, CLASSES = 9000, 0.2, 10


class Classifier(nn.Module):
    """What pfl asks of a model: a loss, and metrics."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        """The outputs."""
        return self.network(x)

    def loss(self, x, y, *, eval=False):  # noqa: A002, ARG002 - pfl's name
        """The loss of a batch."""
        self.train()
        return nn.functional.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x, y, *, eval=False):  # noqa: A002, ARG002 - pfl's name
        """The metrics of a batch, which are not asked for."""
        return {"loss": Weighted(float(nn.functional.cross_entropy(self(x), y)) * len(y), len(y))}


def network(model: str) -> nn.Module:
    """The 2NN or the CNN of McMahan et al. on images of 28 × 28 pixels."""
    if model == "2nn":
        return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, CLASSES))
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, CLASSES),
    )


class Marks(TrainingProcessCallback):
    """Notes when each round ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):  # noqa: ARG002 - pfl's names
        """A round has ended."""
        self.times.append(time.perf_counter())
        return False, Metrics()


def main() -> None:
    """Train."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(IMAGES, 784), dtype=np.uint8) * (rng.random((IMAGES, 784)) < INK)
    x = torch.from_numpy((pixels / 255).astype(np.float32))
    y = torch.from_numpy(rng.integers(CLASSES, size=IMAGES))
    clients = given["clients"]
    each = IMAGES // clients

    def data(client: int) -> Dataset:
        part = slice(client * each, (client + 1) * each)
        return Dataset(raw_data=[x[part], y[part]], user_id=str(client))

    federated = FederatedDataset(data, get_user_sampler("random", list(range(clients))))
    module = Classifier(network(given["model"]))
    model = PyTorchModel(
        module, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(module.parameters(), 1.0)
    )
    marks = Marks()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=given["rounds"],
            evaluation_frequency=given["rounds"] + 1,  # the first round is left out, and it alone is evaluated
            train_cohort_size=given["cohort"],
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=federated, val_data=None),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_learning_rate=0.05, local_num_epochs=given["epochs"], local_batch_size=10
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=1000),
        callbacks=[marks],
    )
    sys.stdout.write("@@" + json.dumps(np.diff(marks.times).tolist()) + "\n")


if __name__ == "__main__":
    main()
