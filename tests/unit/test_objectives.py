"""The built-in objectives: losses and metrics next to their formulas, and data that fits them or not."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as theirs
from torch import Tensor, nn

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.data.load import describe
from fedsim.data_schema import Targets
from fedsim.errors import BadInput
from fedsim.learning import class_metrics
from fedsim.learning.evaluate import Evaluation, evaluate
from fedsim.learning.examples import DataSet, Examples, made_up_targets
from fedsim.learning.metrics import flat_class_values
from fedsim.learning.objectives import make_objective
from fedsim.learning.simulate import simulate
from fedsim.settings import TaskSettings

pytestmark = pytest.mark.usefixtures("deterministic_torch")
Array = NDArray[np.float64]
CLASSES = 4


class _Recorded(nn.Module):
    """Gives recorded outputs, batch after batch."""

    def __init__(self, outputs: Array) -> None:
        super().__init__()
        self.outputs, self.next = torch.from_numpy(outputs), 0
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        self.next += len(features)
        return self.outputs[self.next - len(features) : self.next]


def evaluated(objective: str, outputs: Array, labels: NDArray[Any], targets: Targets) -> Evaluation:
    examples = Examples(np.zeros((len(labels), 1), np.float32), labels, targets=targets)
    made = make_objective(TaskSettings(objective=objective))
    return evaluate(_Recorded(outputs), examples, objective=made, batch_size=37)


def logits(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(scale=2.0, size=shape)


def softmax(outputs: Array) -> Array:
    """Of the last dimension."""
    powers = np.exp(outputs)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def close(one: Any, other: Any) -> bool:
    return bool(np.allclose(one, other, rtol=0, atol=1e-12))


def area(scores: Array, positive: NDArray[np.bool_]) -> float:
    """Of all pairs, how often the positive one has the higher score; half where they are equal."""
    differences = scores[positive][:, None] - scores[~positive][None]
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


def precision_area(scores: Array, positive: NDArray[np.bool_]) -> float:
    """Σ (R_n - R_{n-1})·P_n over all thresholds."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        recall = (chosen & positive).sum() / positive.sum()
        total += (recall - before) * (chosen & positive).sum() / chosen.sum()
        before = recall
    return float(total)


def counts(predicted: NDArray[Any], labels: NDArray[Any], label: int) -> tuple[int, int, int]:
    """True positives, false positives and false negatives of a class."""
    return (
        int(((predicted == label) & (labels == label)).sum()),
        int(((predicted == label) & (labels != label)).sum()),
        int(((predicted != label) & (labels == label)).sum()),
    )


def test_metrics_of_classification_are_their_formulas() -> None:
    outputs, labels = logits(301, CLASSES), np.random.default_rng(1).integers(CLASSES, size=301)
    found = evaluated("classification", outputs, labels, "classes")
    probabilities, predicted = softmax(outputs), outputs.argmax(axis=1)
    of = [counts(predicted, labels, label) for label in range(CLASSES)]
    recall, precision = [tp / (tp + fn) for tp, _, fn in of], [tp / (tp + fp) for tp, fp, _ in of]
    f1 = [2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True)]
    assert close(found.metrics["accuracy"], (predicted == labels).mean())
    assert close(found.metrics["balanced_accuracy"], np.mean(recall))
    assert close(found.metrics["macro_f1"], np.mean(f1))
    assert close(found.metrics["auc"], np.mean([area(probabilities[:, k], labels == k) for k in range(CLASSES)]))
    assert close(found.metrics["loss"], -np.log(probabilities[np.arange(301), labels]).mean())
    confidence, error = probabilities.max(axis=1), 0.0
    for low in range(class_metrics.BINS):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs((predicted == labels)[inside].mean() - confidence[inside].mean())
    assert close(found.metrics["calibration_error"], error)
    assert close(found.class_metrics["recall"], recall)
    assert close(found.class_metrics["precision"], precision)
    assert close(found.class_metrics["f1"], f1)
    assert close(found.class_metrics["confusion"], theirs.confusion_matrix(labels, predicted, normalize="true"))
    assert close(found.metrics["macro_f1"], theirs.f1_score(labels, predicted, average="macro"))
    assert close(found.metrics["balanced_accuracy"], theirs.balanced_accuracy_score(labels, predicted))
    assert close(found.metrics["auc"], theirs.roc_auc_score(labels, probabilities, multi_class="ovr"))


def test_a_class_that_is_not_there_does_not_count() -> None:
    outputs, labels = logits(60, CLASSES), np.random.default_rng(1).integers(2, size=60)
    outputs[:, 3] = -100.0  # never predicted
    found = evaluated("classification", outputs, labels, "classes")
    assert [value is None for value in found.class_metrics["recall"]] == [False, False, True, True]
    assert [value is None for value in found.class_metrics["precision"]] == [False, False, False, True]
    assert found.class_metrics["f1"][2:] == (0.0, None)
    assert found.class_metrics["confusion"][2:] == (None, None)
    assert close(
        found.metrics["balanced_accuracy"], np.mean([value or 0 for value in found.class_metrics["recall"][:2]])
    )
    assert close(found.metrics["macro_f1"], np.mean([value or 0 for value in found.class_metrics["f1"][:3]]))


def test_very_many_classes_are_not_ranked() -> None:
    most = class_metrics.MOST_RANKED_CLASSES
    for classes, ranked in ((most, True), (most + 1, False)):
        found = evaluated("classification", logits(50, classes), np.arange(50) % classes, "classes")
        assert ("auc" in found.metrics) == ranked
    for classes, shown in (
        (class_metrics.MOST_CONFUSED_CLASSES, True),
        (class_metrics.MOST_CONFUSED_CLASSES + 1, False),
    ):
        found = evaluated("classification", logits(50, classes), np.arange(50) % classes, "classes")
        assert ("confusion" in found.class_metrics) == shown


def test_values_of_classes_become_columns() -> None:
    values = {"recall": (0.5, None), "confusion": ((0.5, 0.5), None)}
    assert flat_class_values(values) == {
        ("recall", 0): 0.5,
        ("recall", 1): None,
        ("confusion", 0, 0): 0.5,
        ("confusion", 0, 1): 0.5,
        ("confusion", 1): None,
    }


def test_metrics_of_binary_are_their_formulas() -> None:
    outputs, labels = np.round(logits(233, 2), 1), np.random.default_rng(2).integers(2, size=233)
    odds, probability = outputs[:, 1] - outputs[:, 0], softmax(outputs)[:, 1]
    odds = np.round(odds, 12)  # so that equal ones are equal
    outputs[:, 0], outputs[:, 1] = 0.0, odds
    found = evaluated("binary", outputs, labels, "classes").metrics
    assert close(found["auc"], area(odds, labels == 1))
    assert close(found["average_precision"], precision_area(odds, labels == 1))
    assert close(found["average_precision"], theirs.average_precision_score(labels, odds))
    assert close(found["brier"], np.mean((probability - labels) ** 2))
    assert close(found["accuracy"], ((probability > 0.5) == labels).mean())
    assert close(found["loss"], -np.log(np.where(labels == 1, probability, 1 - probability)).mean())


def test_metrics_of_multilabel_are_their_formulas() -> None:
    outputs = logits(190, 3)
    labels = np.random.default_rng(3).integers(2, size=(190, 3)).astype(np.float32)
    found = evaluated("multilabel", outputs, labels, "flags")
    there, chosen = labels == 1, 1 / (1 + np.exp(-outputs)) > 0.5
    flags = [counts(chosen[:, k], there[:, k], label=1) for k in range(3)]
    f1 = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in flags]
    tp, fp, fn = np.sum(flags, axis=0)
    loss = np.log1p(np.exp(-outputs)) * there + np.log1p(np.exp(outputs)) * ~there
    assert close(found.metrics["macro_f1"], np.mean(f1))
    assert close(found.metrics["micro_f1"], 2 * tp / (2 * tp + fp + fn))
    assert close(found.metrics["auc"], np.mean([area(outputs[:, k], there[:, k]) for k in range(3)]))
    ranked = [precision_area(outputs[:, k], there[:, k]) for k in range(3)]
    assert close(found.metrics["average_precision"], np.mean(ranked))
    assert close(found.metrics["flag_accuracy"], (chosen == there).mean())
    assert close(found.metrics["exact_match"], (chosen == there).all(axis=1).mean())
    assert close(found.metrics["loss"], loss.mean())
    assert close(found.class_metrics["recall"], [tp / (tp + fn) for tp, _, fn in flags])
    assert close(found.class_metrics["precision"], [tp / (tp + fp) for tp, fp, _ in flags])


def test_metrics_of_regression_are_their_formulas() -> None:
    outputs, labels = logits(210, 2), np.float32(logits(210, 2, seed=1) + np.array([1000.0, 0.0]))
    outputs[:, 0] += 1000.0
    found = evaluated("regression", outputs, labels, "numbers").metrics
    error, exact = outputs - labels, labels.astype(np.float64)
    r2 = [1 - (error[:, k] ** 2).sum() / ((exact[:, k] - exact[:, k].mean()) ** 2).sum() for k in range(2)]
    assert close(found["mse"], (error**2).mean())
    assert close(found["mae"], abs(error).mean())
    assert close(found["r2"], np.mean(r2))
    assert close(found["r2"], theirs.r2_score(exact, outputs))
    assert close(found["loss"], found["mse"])
    assert evaluated("regression", outputs, np.ones((210, 2), np.float32), "numbers").metrics["r2"] is None


def test_metrics_of_next_token_count_each_place() -> None:
    outputs, labels = logits(90, 5, CLASSES), np.random.default_rng(4).integers(CLASSES, size=(90, 5))
    found = evaluated("next_token", outputs, labels, "tokens").metrics
    right = softmax(outputs)[np.arange(90)[:, None], np.arange(5)[None], labels]
    assert close(found["loss"], -np.log(right).mean())
    assert found["perplexity"] == pytest.approx(exp(-np.log(right).mean()), rel=1e-12)
    assert close(found["accuracy"], (outputs.argmax(axis=2) == labels).mean())


def test_metrics_of_segmentation_are_over_all_pixels() -> None:
    outputs, labels = logits(40, 3, 6, 7), np.random.default_rng(5).integers(3, size=(40, 6, 7))
    found = evaluated("segmentation", outputs, labels, "mask")
    predicted = outputs.argmax(axis=1)
    of = [counts(predicted, labels, label) for label in range(3)]
    dice, iou = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in of], [tp / (tp + fp + fn) for tp, fp, fn in of]
    probabilities = softmax(np.moveaxis(outputs, 1, -1))
    assert close(found.class_metrics["dice"], dice)
    assert close(found.class_metrics["iou"], iou)
    assert close(found.metrics["mean_dice"], np.mean(dice))
    assert close(found.metrics["mean_iou"], np.mean(iou))
    assert close(found.metrics["accuracy"], (predicted == labels).mean())
    assert close(found.metrics["loss"], -np.log(np.take_along_axis(probabilities, labels[..., None], -1)).mean())


# ---------------------------------------------------------------- data that fits


SHAPES: dict[Targets, tuple[int, ...]] = {
    "classes": (3,),
    "tokens": (5,),
    "mask": (4, 6),
    "numbers": (3,),
    "flags": (3,),
}
OBJECTIVES: dict[str, Targets] = {
    "classification": "classes",
    "binary": "classes",
    "multilabel": "flags",
    "regression": "numbers",
    "next_token": "tokens",
    "segmentation": "mask",
}


def data_of(targets: Targets, outputs: int = 2, count: int = 60) -> DataSet:
    rng, shape = np.random.default_rng(0), SHAPES[targets]
    labels = made_up_targets(rng, targets, count, shape, outputs)
    examples = Examples(rng.normal(size=(count, *shape)).astype(np.float32), labels, targets=targets)
    return DataSet(examples, examples, outputs)


class _Linear:
    """A model for any shape of outputs."""

    def __init__(self, objective: str) -> None:
        self.objective = make_objective(TaskSettings(objective=objective))

    def __call__(self, feature_shape: tuple[int, ...], outputs: int) -> nn.Module:
        shape = self.objective.output_shape(feature_shape, outputs)
        inputs = int(np.prod(feature_shape))
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, int(np.prod(shape))), nn.Unflatten(1, shape))


@pytest.mark.parametrize("partition", ["iid", "shards", "dirichlet"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_trains_in_every_division(objective: str, partition: str) -> None:
    settings = TaskSettings(
        objective=objective,
        partition=partition,
        num_clients=4,
        fraction_train=1.0,
        num_rounds=6,
        evaluate_every=1,
        local_learning_rate=0.05,
    )
    rounds = simulate(settings, data_of(OBJECTIVES[objective]), model=_Linear(objective)).rounds
    losses = [found.metrics["loss"] or 0.0 for found in rounds]
    assert losses[-1] < losses[0]
    described = make_objective(settings).metrics
    assert {"train_loss", *rounds[-1].metrics, *rounds[-1].class_metrics} == {each.name for each in described.metrics}
    assert described.headline_name in rounds[-1].metrics


@pytest.mark.parametrize(
    ("objective", "targets", "outputs", "problem"),
    [
        (
            "regression",
            "classes",
            2,
            "has targets that are one class of each example, and this objective needs numbers",
        ),
        ("classification", "numbers", 1, "has targets that are numbers, and this objective needs one class of each"),
        ("multilabel", "numbers", 3, "has targets that are numbers, and this objective needs flags, each 0 or 1"),
        ("next_token", "mask", 3, "has targets that are a class of each pixel, and this objective needs a class at"),
        ("binary", "classes", 3, "has 3 classes, and this objective needs 2"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_a_sentence(
    objective: str, targets: Targets, outputs: int, problem: str
) -> None:
    with pytest.raises(BadInput, match=f"the data set {problem}.*: choose another objective or data set"):
        simulate(TaskSettings(objective=objective, num_clients=2), data_of(targets, outputs), model=_Linear(objective))


def test_a_model_with_other_outputs_is_refused() -> None:
    settings = TaskSettings(objective="segmentation", model="logistic", num_clients=2)
    problem = r"model logistic must give the outputs that the task's objective takes: for 2 examples and 2 classes"
    with pytest.raises(BadInput, match=rf"{problem} \[2, 2, 4, 6\]; it gives \[2, 2\]"):
        simulate(settings, data_of("mask"))


@pytest.mark.parametrize(
    ("targets", "labels", "expected"),
    [
        ("numbers", np.arange(20.0)[::-1, None], np.arange(20)[::-1] // 2),
        ("flags", np.array([[0, 0, 1], [1, 1, 0], [0, 0, 0]]), [2, 0, 3]),
        ("tokens", np.array([[1, 2, 2], [0, 0, 1]]), [2, 0]),
        ("mask", np.array([[[1, 1], [1, 0]]]), [1]),
    ],
)
def test_partitions_that_go_by_labels_see_a_class_of_each_example(
    targets: Targets, labels: NDArray[Any], expected: Any
) -> None:
    assert Examples(np.zeros((len(labels), 2)), labels, targets=targets).strata.tolist() == list(expected)


# ---------------------------------------------------------------- files


def stored(folder: Path, targets: str, x: NDArray[Any], y: NDArray[Any]) -> DataSet:
    np.savez(folder / "d.npz", x_train=x, y_train=y)
    config = DataSetConfig.model_validate({"name": "d", "path": "d.npz", "targets": targets, "test_share": 0.2})
    return load_dataset(config, folder)


@pytest.mark.parametrize(
    ("targets", "x", "y", "shape", "outputs"),
    [
        ("numbers", (30, 3), np.linspace(0, 1, 30), (1,), 1),
        ("numbers", (30, 3), np.ones((30, 2)), (2,), 2),
        ("flags", (30, 3), np.eye(30, 4) > 0, (4,), 4),
        ("tokens", (30, 5), np.arange(150).reshape(30, 5) % 7, (5,), 7),
        ("mask", (30, 4, 6), np.arange(720).reshape(30, 4, 6) % 3, (4, 6), 3),
    ],
)
def test_npz_files_hold_every_kind_of_target(
    tmp_path: Path, targets: str, x: tuple[int, ...], y: NDArray[Any], shape: tuple[int, ...], outputs: int
) -> None:
    dataset = stored(tmp_path, targets, np.zeros(x, np.float32), y)
    assert dataset.test is not None
    assert (dataset.num_classes, dataset.train.targets, dataset.test.targets) == (outputs, targets, targets)
    assert dataset.train.labels.shape[1:] == shape
    assert dataset.train.labels.dtype == (np.float32 if targets in {"numbers", "flags"} else np.int64)
    info = describe(DataSetConfig.model_validate({"name": "d", "path": "d.npz"}), dataset)
    assert info.data_schema is not None
    assert (info.data_schema.targets, info.num_classes) == (targets, outputs)


@pytest.mark.parametrize(
    ("targets", "y", "problem"),
    [
        ("classes", np.linspace(0, 1, 30), "labels are float64, they must be whole numbers: .* with `targets`"),
        ("numbers", np.full(30, np.nan), r"example 0 has the targets \[nan\], not finite numbers"),
        ("flags", np.full((30, 2), 2), r"example 0 has the targets \[2.0, 2.0\], not flags, 0 or 1"),
        (
            "tokens",
            np.zeros(30, np.int64),
            r"targets that are tokens must be int64 \[n, length\]; they are int64 \[24\]",
        ),
        ("tokens", np.zeros((30, 2), np.int64), r"shape \[3\], its tokens \[2\]; there must be one class for each"),
        ("tokens", np.full((30, 3), -1), "example 0 has the label -1; labels are class numbers from 0 to"),
    ],
)
def test_targets_of_another_kind_are_refused(tmp_path: Path, targets: str, y: NDArray[Any], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        stored(tmp_path, targets, np.zeros((30, 3), np.float32), y)


def table(folder: Path, text: str, name: str = "t.csv", **keys: Any) -> DataSet:
    (folder / name).write_text(text, encoding="utf-8")
    return load_dataset(DataSetConfig.model_validate({"name": "t", "path": name, **keys}), folder)


def test_tables_hold_numbers_and_flags(tmp_path: Path) -> None:
    text = "a,price,b,age\n1,2.5,3,40\n2,-1e3,5,41\n"
    one = table(tmp_path, text, targets="numbers", label_column="price")
    assert (one.num_classes, one.train.labels.tolist()) == (1, [[2.5], [-1000.0]])
    assert one.train.features.tolist() == [[1, 3, 40], [2, 5, 41]]
    two = table(tmp_path, text, targets="numbers", label_columns=["age", "price"])
    assert (two.num_classes, two.train.labels.tolist()) == (2, [[40, 2.5], [41, -1000.0]])
    assert two.data_schema is not None
    assert (two.data_schema.targets, two.data_schema.labels) == ("numbers", ("age", "price"))
    flags = table(tmp_path, "a,f,g\n1,0,1\n2,1,1\n", targets="flags", label_columns=["f", "g"])
    assert flags.train.labels.tolist() == [[0, 1], [1, 1]]


def test_parquet_files_hold_numbers(tmp_path: Path) -> None:
    import polars as pl  # noqa: PLC0415 - its threads must not exist before other tests fork

    pl.DataFrame({"a": [1, 2], "y": [0.25, 7.0], "z": [1.0, -1.0]}).write_parquet(tmp_path / "t.parquet")
    config = DataSetConfig.model_validate(
        {"name": "t", "path": "t.parquet", "targets": "numbers", "label_columns": ["y", "z"]}
    )
    assert load_dataset(config, tmp_path).train.labels.tolist() == [[0.25, 1], [7, -1]]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"targets": "numbers", "label_column": "y"}, "line 3: column y: 'many' is not a finite number"),
        ({"targets": "numbers", "label_column": "z"}, "line 2: column z: the target is missing; fill it"),
        (
            {"targets": "flags", "label_columns": ["a", "b"]},
            r"example 0 has the targets \[3.0, 1.0\], not flags, 0 or 1",
        ),
        ({"targets": "numbers", "label_columns": ["y", "q"]}, "line 1: no label_column 'q'; columns are"),
        ({"label_columns": ["y"]}, "label_columns are for the targets numbers and flags"),
        (
            {"targets": "flags", "label_column": "y", "labels": {"x": 0}},
            "labels are classes, and the targets are flags",
        ),
    ],
)
def test_tables_with_wrong_targets_are_refused(tmp_path: Path, keys: dict[str, Any], problem: str) -> None:
    text = "a,b,y,z\n3,1,1,\n2,1,many,4\n" if keys.get("targets") == "numbers" else "a,b,y,z\n3,1,1,\n"
    with pytest.raises(Exception, match=problem):
        table(tmp_path, text, **keys, **({} if "z" in keys.get("label_column", "") else {"id_column": "z"}))
    dropped = table(tmp_path, "a,z\n3,\n2,4\n", targets="numbers", label_column="z", missing="drop")
    assert dropped.train.labels.tolist() == [[4]]
