from __future__ import annotations

import csv
import io
import json
import socket
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from cli_support import Result, Terminal
from PIL import Image

from fedsim import plugins
from fedsim.data_schema import DataSchema
from fedsim.learning.models import Model
from fedsim.learning.networks import build_model, num_parameters
from fedsim.messages import ModelSpec
from fedsim.spool.npy import write_vector
from fedsim.worker.checkpoint import load_checkpoint, save_checkpoint
from fedsim.worker.jobs import SaveCheckpoint

# Class 1 where the first column is the larger one: logits are x @ WEIGHTS.T + BIAS.
WEIGHTS = np.array([[0, 5], [5, 0]], np.float32)
BIAS = np.zeros(2, np.float32)
LABELLED = "left,right,class\n3,1,1\n1,3,0\n2,1,0\n0,4,0\n"
PLAIN = "left,right\n3,1\n1,3\n2,1\n0,4\n"
PREDICTED = ["1", "0", "1", "0"]


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Terminal:
    def refuse(*_: Any) -> None:
        raise AssertionError("predicting needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return Terminal(capsys, monkeypatch, tmp_path)


def save(path: Path, model: str, shape: tuple[int, ...], num_classes: int, vector: np.ndarray[Any, Any]) -> Path:
    write_vector(path.with_suffix(".npy"), vector)
    job = SaveCheckpoint(
        model_spec=ModelSpec(name=model, feature_shape=shape, num_classes=num_classes),
        round=1,
        model=path.with_suffix(".npy"),
        out=path,
        about={"round": 1},
    )
    save_checkpoint(job)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    vector = np.concatenate([WEIGHTS.ravel(), BIAS])
    return save(tmp_path / "round-0001.safetensors", "logistic", (2,), 2, vector)


def test_a_checkpoint_of_version_0_1_can_still_be_used(checkpoint: Path, tmp_path: Path) -> None:
    module, spec = load_checkpoint(checkpoint)
    about = {"model": "logistic", "feature_shape": [2], "num_classes": 2}
    tensors = {name: tensor.detach() for name, tensor in module.named_parameters()}
    old = tmp_path / "old.safetensors"
    safetensors.torch.save_file(tensors, old, metadata={"fedsim": json.dumps(about)})
    again, its_spec = load_checkpoint(old)
    assert its_spec == spec
    assert all(torch.equal(one, two) for one, two in zip(module.parameters(), again.parameters(), strict=True))


@pytest.fixture
def regression(tmp_path: Path) -> Path:
    """A checkpoint that predicts the columns `high` = 5 · right and `low` = 5 · left."""
    vector = np.concatenate([WEIGHTS.ravel(), BIAS])
    path = save(tmp_path / "numbers.safetensors", "logistic", (2,), 2, vector)
    schema = DataSchema(kind="table", features=("left", "right"), targets="numbers", labels=("high", "low"))
    about = {"data_schema": schema.model_dump(mode="json"), "settings": {"objective": "regression"}}
    write(path.with_suffix(".json"), json.dumps(about))
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def rows(result: Result) -> list[dict[str, str]]:
    assert result.code == 0, result.err
    return list(csv.DictReader(io.StringIO(result.out)))


def test_a_table_without_labels_gets_classes_and_probabilities(
    terminal: Terminal, checkpoint: Path, tmp_path: Path
) -> None:
    result = terminal.run("predict", "--checkpoint", checkpoint, "--data", write(tmp_path / "new.csv", PLAIN))
    found = rows(result)
    assert [row["predicted"] for row in found] == PREDICTED
    assert [row["example"] for row in found] == ["0", "1", "2", "3"]
    # softmax of (5, 15)
    assert float(found[0]["probability_1"]) == pytest.approx(1 / (1 + np.exp(-10)), rel=1e-5)
    assert "accuracy" not in result.err


def test_with_labels_it_shows_how_good_the_predictions_are(
    terminal: Terminal, checkpoint: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "new.csv", LABELLED)
    result = terminal.run("predict", "--checkpoint", checkpoint, "--data", data, "--label-column", "class")
    assert [row["label"] for row in rows(result)] == ["1", "0", "0", "0"]
    assert "accuracy 75.00%" in result.err
    assert "auc 1" in result.err
    assert "class 0: 66.67%, class 1: 100.00%" in result.err


def test_json_holds_the_metrics_and_the_file_the_predictions(
    terminal: Terminal, checkpoint: Path, tmp_path: Path
) -> None:
    data, output = write(tmp_path / "new.csv", LABELLED), tmp_path / "predicted.csv"
    arguments = ("predict", "--checkpoint", checkpoint, "--data", data, "--output", output)
    arguments = (*arguments, "--label-column", "class")
    result = terminal.run(*arguments, "--json")
    assert result.code == 0, result.err
    document = result.document
    assert document["num_examples"] == 4
    assert document["metrics"]["accuracy"] == 0.75
    with output.open(encoding="utf-8", newline="") as file:
        assert [row["predicted"] for row in csv.DictReader(file)] == PREDICTED
    assert terminal.run(*arguments).code == 65
    assert terminal.run(*arguments, "--force").code == 0


def test_a_table_is_prepared_like_the_nodes_own(terminal: Terminal, checkpoint: Path, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "left,right,class\n100,0,yes\n0,1,no\n")
    config = write(
        tmp_path / "client.yml",
        json.dumps(
            {
                "name": "node-1",
                "server": {"port": 9001},
                "data": str(tmp_path),
                "datasets": [
                    {
                        "name": "bank",
                        "path": "train.csv",
                        "label_column": "class",
                        "scale": "minmax",
                        "missing": "mean",
                        "labels": {"no": 0, "yes": 1},
                    }
                ],
            }
        ),
    )
    # Scaled by what the training file spans, 90 of 100 is more than 0.5 of 1, and 10 of 100 (or the mean, 50) is not.
    new = write(tmp_path / "new.csv", "right,left,class\n0.5,90,yes\n0.5,10,yes\n0.6,,no\n")
    like = ("--like", "bank", "--config", config)
    result = terminal.run("predict", "--checkpoint", checkpoint, "--data", new, *like)
    found = rows(result)
    assert [row["predicted"] for row in found] == ["1", "0", "0"]
    assert [row["label"] for row in found] == ["1", "1", "0"]
    unlabelled = write(tmp_path / "unlabelled.csv", "left,right\n90,0.5\n")
    found = rows(terminal.run("predict", "--checkpoint", checkpoint, "--data", unlabelled, *like))
    assert [row["predicted"] for row in found] == ["1"]
    assert "label" not in found[0]
    result = terminal.run("predict", "--checkpoint", checkpoint, "--data", new, "--like", "x", "--config", config)
    assert result.code == 65
    assert "available: bank" in result.err


def test_images_in_an_archive_or_array_are_scaled_as_in_training(terminal: Terminal, tmp_path: Path) -> None:
    vector = np.concatenate([np.ones(4), -np.ones(4), [0, 2.5]]).astype(np.float32)
    checkpoint = save(tmp_path / "image.safetensors", "logistic", (2, 2), 2, vector)
    # The sum of an image's four pixels / 255 decides: beyond 1.25 it is class 0.
    images = np.stack([np.full((2, 2), 255, np.uint8), np.full((2, 2), 51, np.uint8)])
    np.savez(tmp_path / "labelled.npz", x_train=images[:1], y_train=[0], x_test=images, y_test=[0, 1])
    np.savez(tmp_path / "features.npz", features=images)
    np.save(tmp_path / "array.npy", images)
    for name in ("labelled.npz", "features.npz", "array.npy"):
        found = rows(terminal.run("predict", "--checkpoint", checkpoint, "--data", tmp_path / name))
        assert [row["predicted"] for row in found] == ["0", "1"]
    arguments = ("predict", "--checkpoint", checkpoint, "--data", tmp_path / "labelled.npz", "--json")
    assert terminal.run(*arguments).document["num_examples"] == 2
    assert terminal.run(*arguments, "--part", "train").document["num_examples"] == 1


def test_digits_come_without_a_file(terminal: Terminal, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "digits.safetensors", "logistic", (8, 8), 10, np.zeros(650, np.float32))
    result = terminal.run(
        "predict", "--checkpoint", checkpoint, "--data", "digits", "--dataset-format", "digits", "--json"
    )
    assert result.code == 0, result.err
    assert result.document["metrics"]["loss"] == pytest.approx(np.log(10))
    assert result.document["metrics"]["auc"] == 0.5


def test_shapes_that_do_not_fit_are_both_named(terminal: Terminal, checkpoint: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "wide.csv", "a,b,c\n1,2,3\n")
    result = terminal.run("predict", "--checkpoint", checkpoint, "--data", data, "--json")
    assert result.code == 65
    assert "[3]" in result.document["error"]
    assert "[2]" in result.document["error"]


def test_a_class_that_the_model_does_not_know_is_named(terminal: Terminal, checkpoint: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "new.csv", "left,right,class\n1,2,4\n")
    result = terminal.run("predict", "--checkpoint", checkpoint, "--data", data, "--label-column", "class")
    assert result.code == 65
    assert "class 4" in result.err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("left,right\n1\n", "line 2"),
        ("left,right\n1,red\n", "--label-column"),
        ("left,right\n1,nan\n", "--like fills"),
        ("left,right\n", "no examples"),
        ('left,right\n"1,2\n', "not valid CSV"),
    ],
)
def test_a_malformed_table_is_refused_with_its_place(
    terminal: Terminal, checkpoint: Path, tmp_path: Path, content: str, told: str
) -> None:
    result = terminal.run("predict", "--checkpoint", checkpoint, "--data", write(tmp_path / "new.csv", content))
    assert result.code == 65
    assert told in result.err
    assert "new.csv" in result.err


def test_what_is_not_there_exits_66_and_what_is_no_checkpoint_65(
    terminal: Terminal, checkpoint: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "new.csv", PLAIN)
    assert terminal.run("predict", "--checkpoint", tmp_path / "none", "--data", data).code == 66
    assert terminal.run("predict", "--checkpoint", checkpoint, "--data", tmp_path / "none").code == 66
    result = terminal.run("predict", "--checkpoint", data, "--data", data)
    assert result.code == 65
    assert "not a checkpoint" in result.err


def test_columns_and_labels_are_those_of_the_models_task(terminal: Terminal, checkpoint: Path, tmp_path: Path) -> None:
    schema = DataSchema(
        kind="table",
        features=("left", "right"),
        labels=("no", "yes"),
        scaling="common",
        scale_values={"left": (1, 2), "right": (1, 2)},
    )
    write(checkpoint.with_suffix(".json"), json.dumps({"data_schema": schema.model_dump(mode="json")}))
    predict = ("predict", "--checkpoint", checkpoint, "--data")
    result = terminal.run(*predict, write(tmp_path / "new.csv", "right,left\n1,3\n3,1\n1,2\n4,0\n"))
    assert [row["predicted"] for row in rows(result)] == PREDICTED
    assert float(rows(result)[0]["probability_1"]) == pytest.approx(1 / (1 + np.exp(-5)), rel=1e-5), "scaled"
    assert "classes: 0 no, 1 yes" in result.err
    write(tmp_path / "train.csv", "right,left,class\n1,3,yes\n3,1,no\n")
    dataset = {"name": "bank", "path": "train.csv", "label_column": "class", "labels": {"yes": 0, "no": 1}}
    about = {"name": "node-1", "server": {"port": 9001}, "data": str(tmp_path), "datasets": [dataset]}
    config = write(tmp_path / "client.yml", json.dumps(about))
    like = ("--like", "bank", "--config", config)
    found = rows(terminal.run(*predict, write(tmp_path / "new.csv", "right,class,left\n1,yes,3\n3,no,1\n"), *like))
    assert [(row["label"], row["predicted"]) for row in found] == [("1", "1"), ("0", "0")]
    other = terminal.run(*predict, write(tmp_path / "new.csv", "right,middle\n1,3\n"))
    assert other.code == 65
    assert "lacks the columns left of the data of round-0001.safetensors and has middle instead" in other.err


# ---------------------------------------------------------------- other targets than classes


def test_numbers_are_predicted_by_name_and_tested_with_the_tasks_objective(
    terminal: Terminal, regression: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "new.csv", "low,right,left,high\n15,1,3,5\n5,3,1,11\n")
    predict = ("predict", "--checkpoint", regression, "--data", data)
    result = terminal.run(*predict, "--label-column", "low", "--label-column", "high")
    assert rows(result) == [
        {"example": "0", "label_high": "5.0", "label_low": "15.0", "predicted_high": "5", "predicted_low": "15"},
        {"example": "1", "label_high": "11.0", "label_low": "5.0", "predicted_high": "15", "predicted_low": "5"},
    ]
    assert "mse 4, mae 1" in result.err
    without = write(tmp_path / "plain.csv", "left,right\n3,1\n")
    found = rows(terminal.run("predict", "--checkpoint", regression, "--data", without))
    assert found == [{"example": "0", "predicted_high": "5", "predicted_low": "15"}]
    refused = terminal.run(*predict, "--label-column", "low")
    assert refused.code == 65
    assert "predicts high, low, given are low" in refused.err


def test_flags_get_a_probability_each(terminal: Terminal, tmp_path: Path) -> None:
    path = save(tmp_path / "flags.safetensors", "logistic", (2,), 2, np.concatenate([WEIGHTS.ravel(), BIAS]))
    schema = DataSchema(kind="arrays", targets="flags")
    write(path.with_suffix(".json"), json.dumps({"data_schema": schema.model_dump(mode="json")}))
    np.savez(tmp_path / "new.npz", x=np.array([[1, -1], [-1, 0]], np.float32), y=np.array([[0, 1], [0, 1]]))
    result = terminal.run("predict", "--checkpoint", path, "--data", tmp_path / "new.npz")
    found = rows(result)
    assert [(row["predicted_0"], row["predicted_1"]) for row in found] == [("0", "1"), ("1", "0")]
    assert [(row["label_0"], row["label_1"]) for row in found] == [("0.0", "1.0"), ("0.0", "1.0")]
    assert float(found[0]["probability_1"]) == pytest.approx(1 / (1 + np.exp(-5)), rel=1e-5)
    assert "exact_match 50.00%" in result.err


class PixelModel(Model):
    """Each pixel's class by its value: 1 above zero."""

    title = "pixels"

    def build(self, feature_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
        assert (feature_shape, num_classes) == ((2, 3), 2)
        return Pixels()


class Pixels(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([-self.factor * images, self.factor * images], dim=1)


def test_classes_of_pixels_are_written_as_an_array(terminal: Terminal, tmp_path: Path) -> None:
    with plugins.registered(plugins.MODELS, EntryPoint("pixels", f"{__name__}:PixelModel", plugins.MODELS)):
        path = save(tmp_path / "mask.safetensors", "pixels", (2, 3), 2, np.ones(1, np.float32))
        schema = DataSchema(kind="arrays", targets="mask")
        write(path.with_suffix(".json"), json.dumps({"data_schema": schema.model_dump(mode="json")}))
        images = np.random.default_rng(0).normal(size=(2500, 2, 3)).astype(np.float32)
        np.savez(tmp_path / "new.npz", x=images, y=(images > 0).astype(np.int64))
        predict = ("predict", "--checkpoint", path, "--data", tmp_path / "new.npz")
        result = terminal.run(*predict, "--output", tmp_path / "predicted.npy")
        assert result.code == 0, result.err
        assert "mean_dice 1, mean_iou 1" in result.err
        np.testing.assert_array_equal(np.load(tmp_path / "predicted.npy"), (images > 0).astype(np.int64))
        refused = terminal.run(*predict)
        assert refused.code == 65
        assert "write an array, --output FILE.npy" in refused.err


def test_text_is_read_as_the_task_read_it(terminal: Terminal, tmp_path: Path) -> None:
    spec = ModelSpec(name="shakespeare_lstm", options={"hidden": 4, "embedding": 2}, feature_shape=(5,), num_classes=4)
    vector = np.zeros(num_parameters(build_model(spec)), np.float32)
    write_vector(tmp_path / "text.npy", vector)
    path = tmp_path / "text.safetensors"
    save_checkpoint(SaveCheckpoint(model_spec=spec, round=1, model=tmp_path / "text.npy", out=path, about={"round": 1}))
    schema = DataSchema(kind="text", targets="tokens", alphabet="abc")
    write(path.with_suffix(".json"), json.dumps({"data_schema": schema.model_dump(mode="json")}))
    data = write(tmp_path / "new.txt", "abcabcabcabcabc")
    predict = ("predict", "--checkpoint", path, "--data", data, "--dataset-format", "text")
    result = terminal.run(*predict, "--output", tmp_path / "predicted.npy")
    assert result.code == 0, result.err
    assert np.load(tmp_path / "predicted.npy").shape == (2, 5)
    assert "perplexity 4" in result.err


def test_folders_of_images_have_the_tasks_classes(terminal: Terminal, tmp_path: Path) -> None:
    vector = np.concatenate([np.zeros(3 * 6), [0, 0, 1]]).astype(np.float32)
    path = save(tmp_path / "photos.safetensors", "logistic", (2, 3), 3, vector)
    schema = DataSchema(kind="images", labels=("ant", "cat", "dog"))
    write(path.with_suffix(".json"), json.dumps({"data_schema": schema.model_dump(mode="json")}))
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("L", (3, 2)).save(tmp_path / "photos" / name / "1.png")
    result = terminal.run("predict", "--checkpoint", path, "--data", tmp_path / "photos")
    assert [(row["label"], row["predicted"]) for row in rows(result)] == [("1", "2"), ("2", "2")]
    assert "accuracy 50.00%" in result.err
