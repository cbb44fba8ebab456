"""What a test on the test set measures, and predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from fedsim.errors import BadInput
from fedsim.learning.evaluate import evaluate, predict
from fedsim.learning.examples import Examples
from fedsim.learning.metrics import Metric, MetricSet, roc_auc
from fedsim.learning.networks import build_model
from fedsim.learning.objectives.classification import CLASSIFICATION, Classification
from fedsim.messages import ModelSpec

MLP = ModelSpec(name="mlp", feature_shape=(5,), num_classes=3)
LOGISTIC = ModelSpec(name="logistic", feature_shape=(5,), num_classes=2)


def _examples(count: int, classes: int) -> Examples:
    rng = np.random.default_rng(1)
    return Examples(rng.integers(256, size=(count, 5), dtype=np.uint8), rng.integers(classes, size=count), 255.0)


def test_metrics_agree_with_scikit_learn() -> None:
    examples = _examples(333, 3)
    model = build_model(MLP)
    evaluation = evaluate(model, examples, batch_size=50)
    metrics = evaluation.metrics
    probabilities = predict(model, examples.take(slice(None)), batch_size=70)
    assert probabilities.shape == (333, 3)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    exact = probabilities.astype(np.float64)
    guesses = probabilities.argmax(axis=1)
    assert evaluation.num_examples == 333
    assert metrics["accuracy"] == pytest.approx((guesses == examples.labels).mean())
    assert metrics["loss"] == pytest.approx(
        log_loss(examples.labels, exact / exact.sum(axis=1, keepdims=True)), rel=1e-5
    )
    assert list(evaluation.class_metrics["recall"]) == pytest.approx(
        [(guesses[examples.labels == label] == label).mean() for label in range(3)]
    )
    assert metrics["auc"] == pytest.approx(
        roc_auc_score(examples.labels, exact / exact.sum(axis=1, keepdims=True), multi_class="ovr"), abs=1e-5
    )


def test_auc_is_there_for_two_classes_and_agrees_with_scikit_learn() -> None:
    examples = _examples(200, 2)
    model = build_model(LOGISTIC)
    scores = predict(model, examples.take(slice(None)))[:, 1]
    assert evaluate(model, examples).metrics["auc"] == pytest.approx(roc_auc_score(examples.labels, scores), abs=1e-6)


def test_equal_scores_share_a_rank() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(5, size=300).astype(np.float64), rng.integers(2, size=300)
    assert roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert roc_auc(np.zeros(4), np.array([0, 1, 0, 1])) == 0.5


def test_an_absent_class_has_no_recall_and_no_auc() -> None:
    examples = Examples(np.zeros((4, 5), np.float32), np.zeros(4, np.int64))
    evaluation = evaluate(build_model(LOGISTIC), examples)
    assert evaluation.class_metrics["recall"][1] is None
    assert evaluation.metrics["auc"] is None


class _WrongOnes:
    """How many examples are classified wrongly."""

    def __init__(self, _: int) -> None:
        self._count = 0

    def add(self, outputs: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
        self._count += int((outputs.argmax(axis=1) != labels).sum())

    def value(self) -> float:
        return float(self._count)


def test_a_new_metric_is_a_description_and_an_accumulator() -> None:
    wrong = Metric("wrong", "Wrong ones", higher_is_better=False, accumulator=_WrongOnes)

    class Ours(Classification):
        metrics = MetricSet((*CLASSIFICATION.metrics, wrong), "wrong")

    values = evaluate(build_model(MLP), _examples(333, 3), objective=Ours()).metrics
    assert values["wrong"] == pytest.approx((1 - (values["accuracy"] or 0)) * 333)
    names = [metric.name for metric in Ours.metrics.in_order(["z", *values])]
    assert names[:2] == ["accuracy", "loss"]
    assert names[-2:] == ["wrong", "z"]


class _Widest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)
        self.widest = 0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.widest = max(self.widest, len(features))
        return self.layer(features)  # type: ignore[no-any-return]


def test_batches_bound_the_memory() -> None:
    model = _Widest()
    evaluate(model, _examples(1203, 2))
    assert model.widest == 500


def test_a_test_set_with_a_class_that_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(BadInput, match="labels from 0 to 2, the model knows the classes 0 to 1"):
        evaluate(build_model(LOGISTIC), _examples(20, 3))
    with pytest.raises(BadInput, match="test set is empty"):
        evaluate(build_model(LOGISTIC), _examples(0, 2))
