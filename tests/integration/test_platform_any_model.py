"""A ResNet-18, a U-Net and a transformer with adapters, of users' packages, train over two nodes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from lab_package import install_package
from platform_support import DIGITS, Platform

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import SimulationResult, simulate
from fedsim.learning.strategies.fedper import FedPer
from fedsim.testing.local_cluster import NodeSpec

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKAGES = {
    "vision-models": ["vision_models", "vision_resnet", "vision_unet"],
    "lora-transformer": ["lora_transformer", "transformer"],
}
"""The modules of each package; the first one has its models."""
MODELS = {
    "resnet18": ("vision_models", "ResNet18"),
    "unet": ("vision_models", "UNet"),
    "lora_transformer": ("lora_transformer", "LoraTransformer"),
}
SQUARES: dict[str, Any] = {
    "name": "squares",
    "path": "squares.npz",
    "format": "npz",
    "targets": "mask",
    "test_share": 0.2,
    "share": True,
    "access": "open",
}
LETTERS: dict[str, Any] = {
    "name": "letters",
    "path": "letters.npz",
    "format": "npz",
    "targets": "tokens",
    "test_share": 0.2,
    "share": True,
    "access": "open",
}
CHOSEN: dict[str, Any] = {
    "num_clients": 4,
    "fraction_train": 1.0,
    "local_learning_rate": 0.05,
    "local_batch_size": 16,
    "num_rounds": 2,
}
RESNET: dict[str, Any] = {
    **CHOSEN,
    "dataset": "digits",
    "partition": "iid",
    "model": "resnet18",
    "model_options": {"width": 4, "stem": "small"},
}
UNET: dict[str, Any] = {
    **CHOSEN,
    "dataset": "squares",
    "partition": "iid",
    "model": "unet",
    "model_options": {"width": 4, "depth": 2},
    "objective": "segmentation",
}

LORA: dict[str, Any] = {
    **CHOSEN,
    "dataset": "letters",
    "partition": "iid",
    "model": "lora_transformer",
    "model_options": {"width": 32, "heads": 2, "layers": 2, "rank": 2},
    "objective": "next_token",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    data, package = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("package")
    rng = np.random.default_rng(0)
    masks = np.zeros((200, 8, 8), np.int64)
    for mask, (row, column) in zip(masks, rng.integers(0, 5, size=(200, 2)), strict=True):
        mask[row : row + 3, column : column + 3] = 1
    images = (masks + 0.1 * rng.normal(size=masks.shape)).astype(np.float32)
    np.savez(data / "squares.npz", x_train=images, y_train=masks)
    letters = (np.arange(120)[:, None] + np.arange(9)) % 5
    np.savez(data / "letters.npz", x_train=letters[:, :-1], y_train=letters[:, 1:])
    nodes = [NodeSpec(name, data, [DIGITS, SQUARES, LETTERS]) for name in ("node-a", "node-b")]
    lines = ["[fedsim.models]"]
    for name in PACKAGES:
        about = tomllib.loads((EXAMPLES / name / "pyproject.toml").read_text())["project"]
        lines += [f"{model} = {value}" for model, value in about["entry-points"]["fedsim.models"].items()]
    with pytest.MonkeyPatch.context() as patch:
        install_package(package, patch, "users_models", "", "\n".join(lines))
        for name, modules in PACKAGES.items():
            for module in modules:
                (package / f"{module}.py").write_text((EXAMPLES / name / f"{module}.py").read_text())
        patch.syspath_prepend(str(package))
        with Platform(tmp_path_factory.mktemp("lab"), nodes) as lab:
            yield lab


def simulated(lab: Platform, task: Any, dataset: dict[str, Any], **given: Any) -> SimulationResult:
    make_deterministic(1)
    module, name = MODELS[task.settings.model]
    plugin = getattr(import_module(module), name)
    model = plugin(plugin.Options(**task.settings.model_options))
    data = load_dataset(DataSetConfig.model_validate(dataset), lab.nodes[0].data)
    return simulate(task.settings, data, placement=[(0, 2), (2, 2)], model=model, **given)


def sent_bytes(lab: Platform, number: int) -> set[int]:
    lines = [
        json.loads(line)
        for node in ("node-a", "node-b")
        for line in (lab.node_spool(node) / "audit.jsonl").read_text().splitlines()
    ]
    return {line["bytes"] for line in lines if line.get("kind") == "localparam" and line.get("task") == number}


def test_a_resnet_18_is_trained_with_averaged_statistics(lab: Platform) -> None:
    number = lab.submit(**RESNET)
    task = lab.completed(number)
    expected = simulated(lab, task, DIGITS)
    assert task.digest == expected.digest
    last = lab.store.rounds.of_task(number)[-1]
    assert last.metrics == pytest.approx(expected.rounds[-1].metrics)
    path = lab.server_spool / "checkpoints" / f"task-{number}" / "round-0002.safetensors"
    with safetensors.safe_open(path, "numpy") as file:
        assert file.get_slice("bn1.num_batches_tracked").get_dtype() == "I64"
        assert (file.get_tensor("bn1.running_var") != 1).all()


def test_a_u_net_is_trained_on_masks(lab: Platform) -> None:
    task = lab.completed(lab.submit(**UNET))
    assert task.digest == simulated(lab, task, SQUARES).digest


def test_of_a_transformer_only_the_adapters_travel(lab: Platform) -> None:
    number = lab.submit(**LORA)
    task = lab.completed(number)
    expected = simulated(lab, task, LETTERS)
    assert task.digest == expected.digest
    adapters = 2 * 2 * (32 * 2 + 2 * 32)
    assert expected.vector.shape == (adapters,)
    (size,) = sent_bytes(lab, number)
    assert 4 * adapters < size < 4 * adapters + 200, "the adapters and a header"
    path = lab.server_spool / "checkpoints" / f"task-{number}" / "round-0002.safetensors"
    with safetensors.safe_open(path, "numpy") as file:
        whole = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 - not a dict
    assert whole > 20 * adapters, "a checkpoint has the base, too"


def test_personal_layers_stay_on_their_node_over_a_kill(lab: Platform) -> None:
    chosen = {**RESNET, "strategy": "fedper", "num_rounds": 4}
    number = lab.submit(**chosen)
    lab.await_round(number, 2)
    lab.kill("node-a")
    lab.start("node-a")
    task = lab.completed(number)
    expected = simulated(lab, task, DIGITS, strategy=FedPer)
    assert task.digest == expected.digest
    (size,) = sent_bytes(lab, number)
    assert 4 * len(expected.vector) < size < 4 * len(expected.vector) + 200, "the shared layers and a header"
    kept = expected.client_states[0]["personal"]
    assert len(kept) == 4 * 8 * 10 + 10
