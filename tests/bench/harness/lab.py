"""A lab of real daemons on this machine that trains next to nothing, so that what is left is the cost of a round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness.memory import tree
from platform_support import Platform

from fedsim.config import ClientConfig, load_config
from fedsim.store.records import RoundRecord, Task
from fedsim.testing import local_cluster
from fedsim.testing.local_cluster import NodeSpec
from fedsim.wire import Peer

NAME = "bench"
FEATURES = 64
IMAGE = (28, 28)
CLASSES = 10
START_ROUNDS = 2
"""Rounds at the start of a task that are no steady state: connections are opened, memory is touched first."""
PATIENCE_SECONDS = 900.0
BYTES_PER_PARAMETER = 4
# A busy machine may start many daemons slowly; nothing that is measured waits for it.
local_cluster.START_SECONDS = PATIENCE_SECONDS


def write_examples(path: Path, count: int, shape: tuple[int, ...] = (FEATURES,)) -> Path:
    """An `.npz` data set with this many training examples and as many to test; returns the folder."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    features = rng.integers(256, size=(count, *shape), dtype=np.uint8)
    labels = np.arange(count) % CLASSES
    np.savez(path, x_train=features, y_train=labels, x_test=features[:CLASSES], y_test=labels[:CLASSES])
    return path.parent


def tiny_lab(
    folder: Path,
    nodes: int,
    *,
    shape: tuple[int, ...] = (FEATURES,),
    examples: int | None = None,
    client: Mapping[str, Any] | None = None,
    **options: Any,
) -> Platform:
    """A lab of this many nodes; each client has four examples unless `examples`, of all clients, says otherwise."""
    data = write_examples(folder / "data" / "bench.npz", examples or max(4 * nodes, CLASSES), shape)
    dataset = {"name": NAME, "path": "bench.npz", "share": True}
    settings = {"announce_seconds": 2, **(client or {})}
    return Platform(folder / "lab", [NodeSpec(f"node-{n}", data, [dataset], settings) for n in range(nodes)], **options)


def many_nodes_lab(folder: Path, count: int, *, shape: tuple[int, ...] = (FEATURES,)) -> tuple[Platform, ClientConfig]:
    """A lab of server, receiver and web alone, which expects this many nodes; with what would be a node's client.yml.

    The nodes do not listen, and may stay silent for as long as they like. The server has a test set of its own.
    """
    data = write_examples(folder / "data" / "bench.npz", max(4 * count, CLASSES), shape)
    dataset = {"name": NAME, "path": "bench.npz", "access": "open"}
    nodes = [NodeSpec(f"node-{number:03}", data, [dataset], listens=False) for number in range(count)]
    server = {"node_timeout_seconds": 100_000, "data": str(data), "datasets": [dataset]}
    lab = Platform(folder / "lab", nodes, server=server)
    for node in nodes:
        del lab.processes[node.name]
    return lab, load_config(lab.config(nodes[0].name), ClientConfig)


def receiver_of(lab: Platform) -> Peer:
    """The server's receiver."""
    listen = yaml.safe_load(lab.config("receiver").read_text(encoding="utf-8"))["listen"]
    return Peer("server", "127.0.0.1", int(listen["port"]))


def task_settings(nodes: int, rounds: int, **changes: Any) -> dict[str, Any]:
    """One client a node, all in each round's cohort, one step each; tested and saved only at the end."""
    return {
        "dataset": NAME,
        "partition": "iid",
        "num_clients": nodes,
        "fraction_train": 1.0,
        "local_epochs": 1,
        "local_batch_size": 10_000,
        "num_rounds": rounds,
        "evaluate_every": rounds,
        "save_every": rounds,
        "num_nodes": nodes,
        **changes,
    }


def sized_mlp(size: int) -> tuple[dict[str, Any], int]:
    """Settings of an MLP whose parameters are about `size` bytes for examples of 64 features, and its exact bytes."""
    width = int((size / BYTES_PER_PARAMETER + 37.5**2) ** 0.5 - 37.5)  # width² + (64 + 10 + 2) × width
    parameters = FEATURES * width + width + width * width + width + width * CLASSES + CLASSES
    return {"model": "mlp", "model_options": {"hidden": [width, width]}}, parameters * BYTES_PER_PARAMETER


def run_task(lab: Platform, settings: Mapping[str, Any]) -> tuple[Task, list[RoundRecord]]:
    """Submit a task, wait until it has completed; returns it with its rounds from round 1 on."""
    task = lab.completed(lab.submit(**settings), seconds=PATIENCE_SECONDS)
    return task, lab.store.rounds.of_task(task.number)[1:]


def steady(rounds: list[RoundRecord]) -> list[float]:
    """The seconds of the rounds after the first ones."""
    return [record.seconds["all"] for record in rounds[START_ROUNDS if len(rounds) > START_ROUNDS else 0 :]]


def median_round(lab: Platform, settings: Mapping[str, Any]) -> float:
    """The median of a task's steady rounds, in seconds."""
    return statistics.median(steady(run_task(lab, settings)[1]))


def processes(lab: Platform) -> dict[str, list[int]]:
    """The daemons of a lab and their workers, by name."""
    return tree({name: process.pid for name, process in lab.processes.items() if process.popen is not None})
