"""Local training: what one client does with the global model, and what a chunk's mean is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim import plugins
from fedsim.learning.chunk import mean_update, train_chunk
from fedsim.learning.components import Components
from fedsim.learning.engine import SequentialTrainer
from fedsim.learning.engines import ClientData
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import Examples
from fedsim.learning.models import Model
from fedsim.learning.networks import build_model, initial_vector, load_vector, vector_of
from fedsim.learning.partitions import make_partition
from fedsim.learning.randomness import generator
from fedsim.learning.strategies import make_strategy
from fedsim.learning.transforms import Pipeline
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.update import PARAMETERS, TRAIN_LOSS, Update

pytestmark = pytest.mark.usefixtures("deterministic_torch")


def _settings(**chosen: Any) -> TaskSettings:
    given = {"model": "mlp", "partition": "iid", "num_clients": 4, "local_epochs": 2, "local_learning_rate": 0.1}
    return TaskSettings(**(given | chosen))


def _engine(settings: TaskSettings, *, count: int = 104, shape: tuple[int, ...] = (6,)) -> SequentialTrainer:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(count, *shape)).astype(np.float32)
    labels = (features.reshape(count, -1)[:, :2].sum(axis=1) > 0).astype(np.int64)
    return _trainer(settings, Examples(features, labels))


def _trainer(settings: TaskSettings, examples: Examples) -> SequentialTrainer:
    data = ClientData(settings, examples, make_partition(settings, examples.labels))
    spec = ModelSpec.of(settings, examples.feature_shape, 2)
    return SequentialTrainer(data, spec, Components.of(settings), "cpu")


def _start(settings: TaskSettings, shape: tuple[int, ...] = (6,)) -> np.ndarray:
    return initial_vector(ModelSpec.of(settings, shape, 2), settings.seed)


def _parameters(updates: Iterable[Update]) -> list[bytes]:
    return [update.arrays[PARAMETERS].tobytes() for update in updates]


MADE_DETERMINISTIC = """
import sys
import torch
from fedsim.learning.engine import make_deterministic

make_deterministic(1)
assert torch.are_deterministic_algorithms_enabled()
assert "torch._inductor" not in sys.modules
"""


def test_torch_is_made_deterministic_without_importing_its_compiler_which_takes_most_of_a_second() -> None:
    subprocess.run([sys.executable, "-c", MADE_DETERMINISTIC], check=True)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_training_is_plain_sgd_in_the_seeds_batch_order(strategy: str) -> None:
    settings = _settings(strategy=strategy, strategy_options={"mu": 0.5} if strategy == "fedprox" else {})
    engine, start = _engine(settings), _start(settings)
    (update,) = engine.train([2], 3, start)

    model = build_model(ModelSpec.of(settings, (6,), 2))
    load_vector(model, start)
    anchors = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    features, labels = (torch.from_numpy(array) for array in engine.data.examples(2))
    rng = generator(settings.seed, "batches", 3, 2)
    losses = []
    for _ in range(2):
        order = torch.from_numpy(rng.permutation(26))
        for batch in (order[:10], order[10:20], order[20:]):  # the last, short batch is kept
            loss = nn.functional.cross_entropy(model(features[batch]), labels[batch])
            losses.append(loss.item() * len(batch))
            if strategy == "fedprox":
                pull = sum((p - a).square().sum() for p, a in zip(model.parameters(), anchors, strict=True))
                loss = loss + 0.25 * pull
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert np.allclose(update.arrays[PARAMETERS], vector_of(model), atol=1e-6)
    assert update.num_examples == 26
    assert update.metrics[TRAIN_LOSS] == pytest.approx(sum(losses) / 52, rel=1e-5)


def test_a_client_trains_the_same_regardless_of_who_trained_before_it() -> None:
    settings = _settings()
    start = _start(settings)
    together = [update.arrays[PARAMETERS].tobytes() for update in _engine(settings).train([0, 1, 3], 1, start)]
    alone = [
        next(iter(_engine(settings).train([client], 1, start))).arrays[PARAMETERS].tobytes() for client in (0, 1, 3)
    ]
    assert together == alone
    assert len(set(together)) == 3


def test_the_global_model_may_be_read_only_and_is_left_as_it_was() -> None:
    settings = _settings()
    start = _start(settings)
    before = start.copy()
    start.flags.writeable = False
    assert len(list(_engine(settings).train([0, 1], 1, start))) == 2
    assert np.array_equal(start, before)


def test_rounds_and_seeds_change_the_batch_order() -> None:
    data = _engine(_settings()).data
    other = _engine(_settings(seed=1)).data
    orders = [data.batch_order(1, 0), data.batch_order(2, 0), data.batch_order(1, 1), other.batch_order(1, 0)]
    assert len({order.tobytes() for order in orders}) == 4
    assert all(sorted(epoch) == list(range(26)) for order in orders for epoch in order.tolist())
    assert np.array_equal(data.batch_order(1, 0), orders[0])


def test_fedprox_without_its_pull_is_fedavg() -> None:
    plain, prox = _settings(), _settings(strategy="fedprox", strategy_options={"mu": 0.0})
    (one,), (other,) = (_engine(chosen).train([0], 1, _start(chosen)) for chosen in (plain, prox))
    assert np.array_equal(one.arrays[PARAMETERS], other.arrays[PARAMETERS])


def test_a_client_that_diverges_is_named_with_its_round() -> None:
    settings = _settings(local_learning_rate=100.0, local_epochs=50)
    features = 1e18 * np.ones((40, 6), np.float32)
    labels = np.tile(np.array([0, 1], np.int64), 20)
    engine = _trainer(settings, Examples(features, labels))
    with pytest.raises(Diverged, match="diverged in round 7 at client 1") as caught:
        list(engine.train([1], 7, _start(settings)))
    assert (caught.value.round_number, caught.value.client) == (7, 1)


class Dropping(Model):
    """A model that drops out units."""

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(feature_shape[0], 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, num_classes))


def test_a_lab_model_with_dropout_is_reproducible_and_torchs_stream_is_put_back() -> None:
    with plugins.registered(plugins.MODELS, EntryPoint("dropping", f"{__name__}:Dropping", plugins.MODELS)):
        settings = _settings(model="dropping")
        start = _start(settings)
        torch.manual_seed(0)
        before = torch.get_rng_state()
        together = _parameters(_engine(settings).train([0, 1], 1, start))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(5)
        assert _parameters(_engine(settings).train([1], 1, start)) == together[1:]
        assert _parameters(_engine(settings).train([1], 2, start)) != together[1:]


def test_random_crops_are_reproducible() -> None:
    settings = _settings(model="cifar_cnn", num_clients=2, local_epochs=1)
    start = _start(settings, (1, 26, 26))
    runs = [next(iter(_engine(settings, count=8, shape=(1, 26, 26)).train([1], 1, start))) for _ in range(2)]
    assert runs[0].arrays[PARAMETERS].tobytes() == runs[1].arrays[PARAMETERS].tobytes()


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_a_chunks_mean_is_weighted_and_summed_in_the_order_given(weighting: str) -> None:
    rng = np.random.default_rng(0)
    updates = [
        Update(base_round=1, client=client, num_examples=size, metrics={TRAIN_LOSS: loss}).with_arrays(
            {PARAMETERS: rng.normal(size=101).astype(np.float32), "more": rng.normal(size=3).astype(np.float32)}
        )
        for client, size, loss in ((3, 10, 1.0), (5, 30, 2.0), (8, 60, 3.0))
    ]
    strategy = make_strategy(_settings(strategy_options={"weighting": weighting}))
    mean = mean_update(iter(updates), strategy)
    weights = [10, 30, 60] if weighting == "examples" else [1, 1, 1]
    for name, array in mean.arrays.items():
        stacked = np.stack([update.arrays[name] for update in updates]).astype(np.float64)
        assert array.dtype == np.float32
        assert np.allclose(array, np.average(stacked, axis=0, weights=weights), rtol=1e-6)
    assert list(mean.arrays) == [PARAMETERS, "more"]
    assert (mean.client, mean.num_clients, mean.num_examples) == (None, 3, 100)
    assert mean.metrics == {TRAIN_LOSS: pytest.approx(2.5)}
    with pytest.raises(ValueError, match="without clients"):
        mean_update([], strategy)


def test_a_chunk_sends_one_mean_or_each_client_as_the_strategy_needs() -> None:
    for name, sent in (("fedavg", [(None, 2)]), ("median", [(0, 1), (2, 1)])):
        settings = _settings(strategy=name)
        strategy = make_strategy(settings)
        updates = list(train_chunk(_engine(settings), strategy, 5, (0, 2), 1, _start(settings), Pipeline()))
        assert [(update.client, update.num_clients) for update in updates] == sent
        assert {(update.base_round, update.chunk) for update in updates} == {(1, 5)}
        assert sum(update.num_examples for update in updates) == 52
