"""Plug-ins that break one promise each, by the check of the conformance suite that must find it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from fedsim.array_layout import ArrayType, Encoding, Layout
from fedsim.data import DataSet
from fedsim.data.table import Csv
from fedsim.data.table_options import TextOptions
from fedsim.errors import BadInput
from fedsim.learning.attacks import Attack
from fedsim.learning.attacks.label_flip import LabelFlip
from fedsim.learning.block_array import BlockArray
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.errors import Diverged
from fedsim.learning.metrics import LOSS, Metric, MetricSet
from fedsim.learning.models import Model
from fedsim.learning.objectives.classification import Classification
from fedsim.learning.optimizers import Optimizer
from fedsim.learning.optimizers.sgd import Sgd
from fedsim.learning.partitions import Partition
from fedsim.learning.partitions.iid import Iid
from fedsim.learning.samplers.uniform import Uniform
from fedsim.learning.schedules.constant import Constant
from fedsim.learning.screenings import UpdateFinding
from fedsim.learning.screenings.norm_and_direction import Exclude, Record
from fedsim.learning.strategies import Strategy, Uplink, weighted_mean
from fedsim.learning.strategies.fedavgm import FedAvgM
from fedsim.learning.strategies.median import Median
from fedsim.learning.transforms import Transform
from fedsim.plugins import PluginOptions

if TYPE_CHECKING:
    from torch import Tensor


def noise() -> float:
    """A number that no seed decides."""
    return int.from_bytes(os.urandom(4), "little") / 2**32


# ------------------------------------------------------------ declarations


class Untitled(Strategy):
    """Has no title."""


class Undocumented(Strategy):
    title = "Undocumented"


class UndescribedOption(Strategy):
    """An option without a description."""

    title = "Undescribed"

    class Options(PluginOptions):
        share: float = Field(0.1, title="Share")


class RequiredOption(Strategy):
    """An option without a default."""

    title = "Required"

    class Options(PluginOptions):
        share: float = Field(title="Share", description="A share.")


class ChangeableOptions(Strategy):
    """Options that can be changed."""

    title = "Changeable"

    class Options(PluginOptions):
        model_config = ConfigDict(frozen=False)


class ChangedByJson(Strategy):
    """An option that JSON cannot hold."""

    title = "JSON"

    class Options(PluginOptions):
        value: Any = Field((1, 2), title="Value", description="A tuple.")


# ------------------------------------------------------------ strategies


class Noisy(Strategy):
    def combine(self, updates: Any, weights: Any, received: Any, prepared: Any) -> Any:  # noqa: ARG002
        return weighted_mean(updates, weights) + noise()


class CentresBlocks(Strategy):
    def step(self, received: Any, combined: Any, state: Any, context: Any) -> Any:  # noqa: ARG002
        return combined - combined.mean(), {}


class AddsNorms(Strategy):
    """Adds up norms instead of their squares."""

    uplink = Uplink.EACH_CLIENT

    def prepare(self, weights: Any, context: Any) -> Any:  # noqa: ARG002
        return (yield lambda updates, _received: np.array([np.linalg.norm(update) for update in updates]))

    def combine(self, updates: Any, weights: Any, received: Any, prepared: Any) -> Any:  # noqa: ARG002
        return weighted_mean([update / norm for update, norm in zip(updates, prepared, strict=True)], weights)


class WritesUpdates(Strategy):
    def combine(self, updates: Any, weights: Any, received: Any, prepared: Any) -> Any:  # noqa: ARG002
        for update in updates:
            np.clip(update, -1, 1, out=update)
        return weighted_mean(updates, weights)


class WritesReceived(Strategy):
    def combine(self, updates: Any, weights: Any, received: Any, prepared: Any) -> Any:  # noqa: ARG002
        received += weighted_mean(updates, weights)
        return received / 2


class WritesState(FedAvgM):
    def step(self, received: Any, combined: Any, state: Any, context: Any) -> Any:  # noqa: ARG002
        velocity = state["momentum"]
        velocity += received - combined
        return received - velocity, {"momentum": velocity}


class ReturnsFloat32(Strategy):
    def combine(self, updates: Any, weights: Any, received: Any, prepared: Any) -> Any:  # noqa: ARG002
        return weighted_mean(updates, weights).astype(np.float32)


class UndeclaredState(Strategy):
    def step(self, received: Any, combined: Any, state: Any, context: Any) -> Any:  # noqa: ARG002
        return combined, {"momentum": combined}


class RemembersItself(Strategy):
    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.steps = 0

    def step(self, received: Any, combined: Any, state: Any, context: Any) -> Any:  # noqa: ARG002
        self.steps += 1
        return combined * self.steps, {}


class DividesByTheNorm(Strategy):
    """Not finite where all updates are zero."""

    uplink = Uplink.EACH_CLIENT

    def combine(self, updates: Any, weights: Any, received: Any, prepared: Any) -> Any:  # noqa: ARG002
        return weighted_mean([update / np.abs(update).max() for update in updates], weights)


class SumsUp(Strategy):
    def combine(self, updates: Any, weights: Any, received: Any, prepared: Any) -> Any:  # noqa: ARG002
        return weighted_mean(updates, weights) * len(updates)


class MedianOfChunks(Median):
    uplink = Uplink.SUM


class MovesParameters(Strategy):
    def adjust_gradients(self, gradients: Any, parameters: Any, received: Any, client: Any) -> None:  # noqa: ARG002
        for parameter in parameters:
            parameter.mul_(0.99)


class PullsReceived(Strategy):
    def adjust_gradients(self, gradients: Any, parameters: Any, received: Any, client: Any) -> None:  # noqa: ARG002
        for anchor in received:
            anchor.mul_(0.99)


class NoisyGradients(Strategy):
    def adjust_gradients(self, gradients: Any, parameters: Any, received: Any, client: Any) -> None:  # noqa: ARG002
        for gradient in gradients:
            gradient.add_(noise())


class SendsNoParameters(Strategy):
    uplink_arrays = ("control",)


class SendsDownWhatItDoesNotKeep(Strategy):
    downlink_arrays = ("control",)


class ForgetsAnArray(Strategy):
    client_state = ("memory",)


class FinishesInPlace(Strategy):
    def finish_client(self, parameters: Any, received: Any, client: Any) -> Any:  # noqa: ARG002
        for parameter in parameters:
            parameter.zero_()
        return {}, {}


class RemembersClients(Strategy):
    """Keeps in the instance what it should declare as the client's state."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.trained = 0

    def adjust_gradients(self, gradients: Any, parameters: Any, received: Any, client: Any) -> None:  # noqa: ARG002
        for gradient in gradients:
            gradient.add_(self.trained)

    def finish_client(self, parameters: Any, received: Any, client: Any) -> Any:  # noqa: ARG002
        self.trained += 1
        return {}, {}


# ------------------------------------------------------------ partitions


class Loses(Iid):
    """The last client is missing."""

    def divide(self, labels: Any, num_clients: int, min_size: int, seed: int) -> Partition:
        return super().divide(labels, max(1, num_clients - 1), min_size, seed)


class Repeats(Iid):
    def divide(self, labels: Any, num_clients: int, min_size: int, seed: int) -> Partition:
        partition = super().divide(labels, num_clients, min_size, seed)
        return Partition(np.zeros_like(partition.order), partition.offsets)


class GivesAllToOne(Iid):
    def divide(self, labels: Any, num_clients: int, min_size: int, seed: int) -> Partition:  # noqa: ARG002
        offsets = np.full(num_clients + 1, len(labels), np.int64)
        offsets[0] = 0
        return Partition(np.arange(len(labels)), offsets)


class ShufflesAnyhow(Iid):
    def divide(self, labels: Any, num_clients: int, min_size: int, seed: int) -> Partition:  # noqa: ARG002
        return super().divide(labels, num_clients, min_size, int(noise() * 2**32))


class IgnoresTheSeed(Iid):
    def divide(self, labels: Any, num_clients: int, min_size: int, seed: int) -> Partition:  # noqa: ARG002
        return super().divide(labels, num_clients, min_size, 0)


class ClaimsToFollowFromCounts(Iid):
    """Which labels a client of `iid` gets depends on the order of the examples."""

    from_counts = "labels"


# ------------------------------------------------------------ samplers


class Unordered(Uniform):
    def draw(self, seed: int, round_number: int, num_clients: int, cohort_size: int) -> tuple[int, ...]:
        return super().draw(seed, round_number, num_clients, cohort_size)[::-1]


class DrawsTwice(Uniform):
    def draw(self, seed: int, round_number: int, num_clients: int, cohort_size: int) -> tuple[int, ...]:  # noqa: ARG002
        return (0,) * cohort_size


class DrawsNumpyIntegers(Uniform):
    def draw(self, seed: int, round_number: int, num_clients: int, cohort_size: int) -> Any:
        return tuple(np.array(super().draw(seed, round_number, num_clients, cohort_size)))


class CountsItsDraws(Uniform):
    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.draws = 0

    def draw(self, seed: int, round_number: int, num_clients: int, cohort_size: int) -> tuple[int, ...]:  # noqa: ARG002
        self.draws += 1
        return super().draw(seed, self.draws, num_clients, cohort_size)


class DrawsAnyhow(Uniform):
    def draw(self, seed: int, round_number: int, num_clients: int, cohort_size: int) -> tuple[int, ...]:  # noqa: ARG002
        return super().draw(int(noise() * 2**32), round_number, num_clients, cohort_size)


class AlwaysTheFirst(Uniform):
    def draw(self, seed: int, round_number: int, num_clients: int, cohort_size: int) -> tuple[int, ...]:  # noqa: ARG002
        return tuple(range(cohort_size))


# ------------------------------------------------------------ objectives


class NotReduced(Classification):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy  # noqa: PLC0415

        return cross_entropy(outputs, targets, reduction="none")


class Infinite(Classification):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets) / 0.0


class NoisyLoss(Classification):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets) * (1 + noise())


class SummedLoss(Classification):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets) * len(targets)


class WrongGradient(Classification):
    """The gradient points the wrong way."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = super().loss(outputs, targets)
        return 2 * loss.detach() - loss


class _AccuracyOfBatches:
    """The mean over batches, of which the last is smaller."""

    def __init__(self, _: int) -> None:
        self.found: list[float] = []

    def add(self, outputs: Any, labels: Any) -> None:
        self.found.append(float((outputs.argmax(axis=1) == labels).mean()))

    def value(self) -> float:
        return float(np.mean(self.found))


class MeanOfBatches(Classification):
    metrics = MetricSet((Metric("accuracy", "Accuracy", accumulator=_AccuracyOfBatches), LOSS), "accuracy")


class NoHeadline(Classification):
    metrics = MetricSet((LOSS,), "accuracy")


# ------------------------------------------------------------ optimizers


class Climbs(Sgd):
    def start(self, parameters: Any, learning_rate: float) -> Any:
        return super().start(parameters, -learning_rate)


class Copies(Sgd):
    """Changes copies of the parameters."""

    def start(self, parameters: Any, learning_rate: float) -> Any:
        return super().start([parameter.clone() for parameter in parameters], learning_rate)


class NoisyStep(Sgd):
    def start(self, parameters: Any, learning_rate: float) -> Any:
        return super().start(parameters, learning_rate * noise())


class SharedVelocity(Optimizer):
    """Momentum that goes on from client to client."""

    velocities: ClassVar[dict[int, Any]] = {}

    def start(self, parameters: Any, learning_rate: float) -> Any:
        self.kept: list[Any] = getattr(self, "kept", [0.0 for _ in parameters])

        def step(gradients: Any) -> None:
            for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                self.kept[number] = 0.9 * self.kept[number] + gradient
                parameter.add_(self.kept[number], alpha=-learning_rate)

        return step


class LatestVelocity(Optimizer):
    """Momentum that begins with each client, but of which there is one for all."""

    def start(self, parameters: Any, learning_rate: float) -> Any:
        self.kept: list[Any] = [0.0 for _ in parameters]

        def step(gradients: Any) -> None:
            for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                self.kept[number] = 0.9 * self.kept[number] + gradient
                parameter.add_(self.kept[number], alpha=-learning_rate)

        return step


# ------------------------------------------------------------ schedules


class EndsAtZero(Constant):
    def factor(self, round_number: int, num_rounds: int) -> float:
        return 1.0 - round_number / num_rounds


class CountsItsCalls(Constant):
    def factor(self, round_number: int, num_rounds: int) -> float:  # noqa: ARG002
        self.calls = getattr(self, "calls", 0) + 1
        return 1.0 / self.calls


class LinearUndeclared(Constant):
    def factor(self, round_number: int, num_rounds: int) -> float:
        return 1.0 - (round_number - 1) / num_rounds


class NoisySchedule(Constant):
    def factor(self, round_number: int, num_rounds: int) -> float:
        return super().factor(round_number, num_rounds) * noise()


# ------------------------------------------------------------ transforms


class SendsMore(Transform):
    def on_client(self, update: Any, sending: Any) -> Any:  # noqa: ARG002
        return update.with_arrays({**update.arrays, "scale": np.ones(1, np.float32)})


class KeepsItsArray(SendsMore):
    def layout(self, layout: Layout) -> Layout:
        return Layout({**layout.shapes, "scale": (1,)})


class ScalesWhatArrived(Transform):
    def on_server(self, update: Any, received: Any) -> Any:  # noqa: ARG002
        for array in update.arrays.values():
            np.multiply(array, 2, out=array)
        return update


class ScalesInPlace(Transform):
    def on_client(self, update: Any, sending: Any) -> Any:  # noqa: ARG002
        for array in update.arrays.values():
            np.multiply(array, 2, out=array)
        return update


class RoundsTheWhole(Transform):
    def on_server(self, update: Any, received: Any) -> Any:  # noqa: ARG002
        def read(start: int, stop: int) -> Any:
            return np.full(stop - start, start, np.float32)

        return update.with_arrays({name: BlockArray.of(len(array), read) for name, array in update.arrays.items()})


class SendsOtherNumbers(Transform):
    def layout(self, layout: Layout) -> Layout:
        return Layout(layout.shapes, dict.fromkeys(layout.shapes, ArrayType(Encoding.INDEX, below=2)))


class KeepsSecretly(Transform):
    def on_client(self, update: Any, sending: Any) -> Any:  # noqa: ARG002
        return update.with_client_state(update.arrays)


class DrawsItsNoise(Transform):
    def on_client(self, update: Any, sending: Any) -> Any:  # noqa: ARG002
        noise = np.random.default_rng().normal(size=1).astype(np.float32)
        return update.with_arrays({name: array + noise for name, array in update.arrays.items()})


class Explodes(Transform):
    def on_server(self, update: Any, received: Any) -> Any:  # noqa: ARG002
        return update.with_arrays({name: array * np.float32(np.inf) for name, array in update.arrays.items()})


# ------------------------------------------------------------ models


class AlwaysZero(Model):
    """A model whose initial parameters do not depend on the seed."""

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> Any:
        from torch import nn  # noqa: PLC0415

        model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(feature_shape)), num_classes))
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        return model


class BeginsAnyhow(AlwaysZero):
    """A model whose initial parameters no seed decides."""

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> Any:
        model = super().build(feature_shape, num_classes)
        for parameter in model.parameters():
            parameter.data.add_(noise())
        return model


class HasAnUnusedParameter(AlwaysZero):
    """A model with a parameter that takes no part."""

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> Any:
        import torch  # noqa: PLC0415

        model = super().build(feature_shape, num_classes)
        model.register_parameter("unused", torch.nn.Parameter(torch.randn(3)))
        return model


class DropsOutAnyhow(Model):
    """A model that changes its output by what no seed decides."""

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> Any:
        from torch import nn  # noqa: PLC0415

        class Noise(nn.Module):
            def forward(self, features: Tensor) -> Tensor:
                return features * noise()

        inputs = int(np.prod(feature_shape))
        return nn.Sequential(nn.Flatten(), Noise(), nn.Linear(inputs, num_classes))


# ------------------------------------------------------------ engines


class Around(SequentialEngine):
    """Trains like the sequential engine; subclasses change what comes out."""

    def start(self, *args: Any) -> Any:
        self.inner = super().start(*args)
        return self

    def train(self, clients: Any, round_number: int, global_vector: Any, **kwargs: Any) -> Any:
        for update in self.inner.train(clients, round_number, global_vector, **kwargs):
            yield self.change(update)

    def change(self, update: Any) -> Any:
        return update


def _scaled(update: Any, factor: float) -> Any:
    return update.with_arrays({name: array * np.float32(factor) for name, array in update.arrays.items()})


class Backwards(Around):
    def train(self, clients: Any, *args: Any, **kwargs: Any) -> Any:
        return super().train(clients[::-1], *args, **kwargs)


class SendsFloat64(Around):
    def change(self, update: Any) -> Any:
        return update.with_arrays({name: array.astype(np.float64) for name, array in update.arrays.items()})


class NoisyEngine(Around):
    def change(self, update: Any) -> Any:
        return _scaled(update, 1 + noise() / 10)


class CountsItsClients(Around):
    seen = 0

    def change(self, update: Any) -> Any:
        self.seen += 1
        return _scaled(update, 1 + self.seen / 100)


class LargerSteps(Around):
    tolerance = 1e-4

    def change(self, update: Any) -> Any:
        return _scaled(update, 1.01)


class ForgetsPersonalLayers(Around):
    def change(self, update: Any) -> Any:
        return update.with_client_state({name: array * 0 for name, array in update.client_state.items()})


class WritesTheGlobalModel(Around):
    def train(self, clients: Any, round_number: int, global_vector: Any, **kwargs: Any) -> Any:
        yield from super().train(clients, round_number, global_vector, **kwargs)
        global_vector += 1


class DrawsFromTorch(Around):
    def change(self, update: Any) -> Any:
        import torch  # noqa: PLC0415

        torch.rand(1)
        return update


class SwallowsDivergence(Around):
    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            yield from super().train(*args, **kwargs)
        except Diverged:
            return


class BlamesAnother(Around):
    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            yield from super().train(*args, **kwargs)
        except Diverged as error:
            raise Diverged(error.round_number, 0) from error


# ------------------------------------------------------------ screenings


class FindsTheFirst(Record):
    def passes(self, weights: Any) -> Any:
        return (yield from super().passes(weights))[:1]


class CountsItsRounds(Record):
    rounds = 0

    def passes(self, weights: Any) -> Any:
        self.rounds += 1
        yield from super().passes(weights)
        return [UpdateFinding({"rounds": float(self.rounds)}) for _ in weights]


class AddsNormsOfBlocks(Record):
    def passes(self, weights: Any) -> Any:  # noqa: ARG002
        norms = yield lambda updates, received: np.array([np.linalg.norm(one - received) for one in updates])
        return [UpdateFinding({"norm": float(norm)}) for norm in norms]


class SuspectsAll(Record):
    def passes(self, weights: Any) -> Any:
        found = yield from super().passes(weights)
        return [UpdateFinding(one.figures, "it is an update") for one in found]


class TrustsAll(Record):
    def passes(self, weights: Any) -> Any:
        found = yield from super().passes(weights)
        return [UpdateFinding(one.figures) for one in found]


class CentresInPlace(Record):
    def passes(self, weights: Any) -> Any:
        def centred(updates: Any, received: Any) -> Any:
            for update in updates:
                np.subtract(update, received, out=update)
            return np.zeros(len(updates))

        yield centred
        return [UpdateFinding() for _ in weights]


class ExcludesAnyhow(Exclude):
    calls = 0

    def passes(self, weights: Any) -> Any:
        found = yield from super().passes(weights)
        ExcludesAnyhow.calls += 1
        found[self.calls % len(found)] = UpdateFinding(found[0].figures, "it is its turn")
        return found


# ------------------------------------------------------------ attacks


class DoesNothing(Attack):
    """Leaves everything as it is."""


class CraftsNothing(Attack):
    def craft(self, honest: Any, context: Any) -> Any:  # noqa: ARG002
        return honest


class CraftsFloat32(Attack):
    def craft(self, honest: Any, context: Any) -> Any:  # noqa: ARG002
        return -honest.astype(np.float32)


class SendsOneMore(Attack):
    def craft(self, honest: Any, context: Any) -> Any:  # noqa: ARG002
        return np.concatenate([honest, honest])


class ReversesInPlace(Attack):
    def craft(self, honest: Any, context: Any) -> Any:  # noqa: ARG002
        honest *= -1
        return honest


class CountsClassesFromOne(LabelFlip):
    def poison(self, features: Any, labels: Any, num_classes: int, rng: Any) -> Any:  # noqa: ARG002
        return features, num_classes - labels


class PoisonsInPlace(LabelFlip):
    def poison(self, features: Any, labels: Any, num_classes: int, rng: Any) -> Any:  # noqa: ARG002
        labels[:] = 0
        return features, labels


class DrawsItsAttack(Attack):
    def craft(self, honest: Any, context: Any) -> Any:  # noqa: ARG002
        return honest * noise()


class CountsItsAttacks(Attack):
    attacks = 0

    def craft(self, honest: Any, context: Any) -> Any:  # noqa: ARG002
        self.attacks += 1
        return honest * self.attacks


# ------------------------------------------------------------ data formats


class OptionsThatAreKeys(Csv):
    class Options(TextOptions):
        share: bool = Field(False, title="share", description="Has the name of a key of every data set")


class RecognisesAll(Csv):
    def detect(self, path: Path) -> bool:  # noqa: ARG002
        return True


class RecognisesNone(Csv):
    def detect(self, path: Path) -> bool:  # noqa: ARG002
        return False


class NoisyFormat(Csv):
    def load(self, config: Any, path: Path, test_path: Path | None) -> DataSet:
        dataset = super().load(config, path, test_path)
        return replace(dataset, train=replace(dataset.train, features=dataset.train.features + np.float32(noise())))


class RoundLabels(Csv):
    def load(self, config: Any, path: Path, test_path: Path | None) -> DataSet:
        dataset = super().load(config, path, test_path)
        return replace(dataset, train=replace(dataset.train, labels=dataset.train.labels.astype(np.int32)))


class WritesAnIndex(Csv):
    def load(self, config: Any, path: Path, test_path: Path | None) -> DataSet:
        path.with_suffix(".index").touch()
        return super().load(config, path, test_path)


class NamesNoFile(Csv):
    def load(self, config: Any, path: Path, test_path: Path | None) -> DataSet:
        try:
            return super().load(config, path, test_path)
        except BadInput as error:
            raise BadInput("the table cannot be read") from error


class RaisesAnything(Csv):
    def load(self, config: Any, path: Path, test_path: Path | None) -> DataSet:
        try:
            return super().load(config, path, test_path)
        except BadInput as error:
            raise IndexError("list index out of range") from error


class NamesNoLine(Csv):
    def load(self, config: Any, path: Path, test_path: Path | None) -> DataSet:
        try:
            return super().load(config, path, test_path)
        except BadInput as error:
            raise BadInput(f"{path} cannot be read") from error


class SkipsWrongLines(Csv):
    def load(self, config: Any, path: Path, test_path: Path | None) -> DataSet:
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join(line for line in lines if "," in line), encoding="utf-8")
        return super().load(config, path, test_path)
