"""The whole platform on one machine: every daemon a real process, tasks submitted through the web's API."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from platform_support import LONG, Platform, digits_lab, small_settings

from fedsim import plugins
from fedsim.config import DataSetConfig
from fedsim.data import DataSet, load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.partition_view import view_partition
from fedsim.learning.simulate import simulate
from fedsim.store.records import TaskState
from fedsim.worker.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with digits_lab(tmp_path_factory.mktemp("platform")) as lab:
        yield lab


@pytest.fixture(scope="module")
def digest(lab: Platform) -> str:
    """The final digest of the undisturbed task."""
    digest = lab.completed(lab.submit(**LONG)).digest
    assert digest is not None
    return digest


def test_the_same_task_again_gives_the_same_bytes_as_one_process_would(lab: Platform, digest: str) -> None:
    assert lab.completed(lab.submit(**LONG)).digest == digest
    make_deterministic(1)
    dataset = load_dataset(DataSetConfig(name="digits", path=Path("digits"), format="digits"), lab.folder)
    alone = simulate(small_settings(**LONG), dataset, chunk_clients=5, placement=[(0, 10), (10, 10)])
    assert alone.digest == digest


def check_partition(lab: Platform, number: int, settings: dict[str, Any], dataset: DataSet) -> None:
    """What the web shows of a task's partition must be that of the data itself."""
    shown = lab.api.get(f"/tasks/{number}/partition").json()["partition"]
    view = view_partition(small_settings(**settings), dataset)
    copies = 2 if settings["partition"] == "local" else 1
    assert shown["sizes"] == view.sizes.tolist() * copies
    if shown["exact"]:
        assert shown["counts"] == view.counts.tolist() * copies


def test_every_strategy_and_every_partition_give_what_one_process_gives(lab: Platform) -> None:
    make_deterministic(1)
    dataset = load_dataset(DataSetConfig(name="digits", path=Path("digits"), format="digits"), lab.folder)
    # `fedbn` needs a model with batch normalisation, the rounds of `fedbuff` go by the clock, and `natural` needs data
    # that names its clients: test_platform_any_model.py, test_platform_buffered.py, test_platform_natural.py.
    strategies = [name for name in plugins.names(plugins.STRATEGIES) if name not in {"fedbn", "fedbuff"}]
    partitions = [name for name in plugins.names(plugins.PARTITIONS) if name != "natural"]
    pairs = {*((strategy, "shards") for strategy in strategies), *(("fedavg", partition) for partition in partitions)}
    chosen = {
        (strategy, partition): {
            "strategy": strategy,
            "partition": partition,
            "num_rounds": 2,
            **({"num_clients": 2, "fraction_train": 1.0} if partition == "local" else {}),
            **({"local_epochs": 2} if strategy == "fedrep" else {}),
        }
        for strategy, partition in sorted(pairs)
    }
    numbers = {pair: lab.submit(**settings) for pair, settings in chosen.items()}
    expected = {
        pair: simulate(small_settings(**settings), [dataset, dataset]).digest
        if pair[1] == "local"
        else simulate(small_settings(**settings), dataset, chunk_clients=5, placement=[(0, 10), (10, 10)]).digest
        for pair, settings in chosen.items()
    }
    assert {pair: lab.completed(number).digest for pair, number in numbers.items()} == expected
    for pair, number in numbers.items():
        check_partition(lab, number, chosen[pair], dataset)


def test_a_task_with_another_model_follows_without_any_restart(lab: Platform) -> None:
    pids = {name: process.pid for name, process in lab.processes.items()}
    first, second = lab.submit(num_rounds=2), lab.submit(num_rounds=2, model="cnn", local_learning_rate=0.05)
    assert lab.task(second).state == "pending"
    lab.completed(first)
    assert lab.completed(second).settings.model == "cnn"
    assert {name: process.pid for name, process in lab.processes.items()} == pids


def test_records_and_checkpoints_are_complete(lab: Platform) -> None:
    number = lab.submit(num_rounds=5)
    task = lab.completed(number)
    rounds = lab.store.rounds.of_task(number)
    assert [record.round for record in rounds] == [0, 1, 2, 3, 4, 5]
    assert [record.round for record in rounds if record.tested] == [0, 2, 4, 5]
    last = rounds[-1]
    assert (task.metrics, task.digest) == (last.metrics, last.digest)
    assert len(last.class_metrics["recall"]) == 10
    assert {"train", "aggregate", "evaluate", "all"} <= set(last.seconds)
    assert last.bytes_sent > 0
    assert last.bytes_received > 0
    saved = lab.store.checkpoints.of_task(number)
    assert [checkpoint.path for checkpoint in saved] == [
        f"task-{number}/round-0003.safetensors",
        f"task-{number}/round-0005.safetensors",
    ]
    path = lab.server_spool / "checkpoints" / saved[-1].path
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["digest"] == saved[-1].digest
    assert about["metrics"]["accuracy"] == task.metrics["accuracy"]
    assert about["settings"]["num_rounds"] == 5
    assert about["parameters_digest"] == task.digest
    assert load_checkpoint(path)[1].feature_shape == (8, 8)


def test_every_node_can_predict_alone_with_the_final_model(lab: Platform) -> None:
    number = lab.submit(num_rounds=1)
    lab.completed(number)
    final = (lab.server_spool / "checkpoints" / f"task-{number}" / "round-0001.safetensors").read_bytes()
    for node in ("node-a", "node-b"):
        path = lab.node_spool(node) / "checkpoints" / f"task-{number:06d}.safetensors"
        lab.await_file(path)
        assert path.read_bytes() == final


def test_after_a_task_the_folders_hold_only_what_must_stay(lab: Platform) -> None:
    number = lab.submit(num_rounds=2, strategy="scaffold")  # whose clients keep what more rounds need
    lab.completed(number)
    for node in ("node-a", "node-b"):
        lab.await_gone(lab.node_spool(node) / "localparam", f"*{lab.task(number).uid}*")
        assert {file.split("/")[0] for file in lab.files(node)} == {
            "audit.jsonl",
            "checkpoints",
            "client-states",
            "events",
            "format",
            "guarded",
            "instance",
        }
    expected = {"checkpoints", "clock.json", "events", "format", "nodes.json", "resumable"}

    def only_the_expected() -> bool:  # a `hello` that is on its way is in `.incoming` for a moment
        return {file.split("/")[0] for file in lab.files("server")} == expected

    lab.await_row(only_the_expected, what=f"for a spool with {', '.join(sorted(expected))} alone")


def test_a_node_notes_everything_that_leaves_it(lab: Platform) -> None:
    number = lab.submit(num_rounds=2)
    task = lab.completed(number)

    def of_the_task() -> list[dict[str, Any]] | None:
        lines = [json.loads(line) for line in (lab.node_spool("node-a") / "audit.jsonl").read_text().splitlines()]
        mine = [line for line in lines if line["task"] == number]
        return mine if any(line.get("round") == 2 for line in mine) else None

    accepted, *mine = lab.await_row(of_the_task, what="for a line about the last round")
    assert {key: accepted[key] for key in ("kind", "from", "user")} == {
        "kind": "task",
        "from": "server",
        "user": "researcher",
    }
    assert {line["kind"] for line in mine} == {"localparam", "testset"}, "node-a shares the test set"
    assert {line["to"] for line in mine} == {"server"}
    assert {line["uid"] for line in mine} == {task.uid}
    assert all(line["num_examples"] > 0 for line in mine if line["kind"] == "localparam")
    assert {line["round"] for line in mine if line["kind"] == "localparam"} == {1, 2}


def test_a_task_stopped_in_the_middle_leaves_no_process_and_resumed_ends_with_the_same_bytes(
    lab: Platform, digest: str
) -> None:
    number = lab.submit(**LONG)
    lab.await_round(number, 2)
    workers = [worker for host in ("server", "node-a", "node-b") for worker in lab.workers(host)]
    assert len(workers) == 4, "two on the server, one on each node"
    following = lab.submit(num_rounds=1)
    assert lab.api.post(f"/tasks/{number}/stop").status_code == 202
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive
    stopped = lab.finish(number)
    assert stopped.state == "stopped"
    assert stopped.resume_round is not None
    lab.completed(following)
    assert lab.api.post(f"/tasks/{following}/resume").status_code == 409
    before = lab.store.rounds.of_task(number)
    assert lab.api.post(f"/tasks/{number}/resume").status_code == 202
    lab.kill("server")
    lab.start("server")
    resumed = lab.completed(number)
    assert (resumed.digest, resumed.started_at) == (digest, stopped.started_at)
    records = lab.store.rounds.of_task(number)
    assert [record.round for record in records] == list(range(LONG["num_rounds"] + 1))
    assert [record.digest for record in records[: len(before)]] == [record.digest for record in before]
    assert resumed.resume_round == LONG["num_rounds"]


def test_a_task_stopped_after_its_last_round_and_resumed_delivers_its_final_model(lab: Platform) -> None:
    number = lab.submit(**LONG | {"num_rounds": 1, "local_epochs": 40})
    lab.await_round(number, 1)
    uid, log = lab.task(number).uid, lab.processes["node-b-receiver"].log

    def has_the_model() -> bool | None:
        lines = log.read_text(encoding="utf-8").splitlines()
        return any("kind=globalparam" in line and uid in line for line in lines) or None

    lab.await_row(has_the_model, what="for the first model at node-b")
    receiver = psutil.Process(lab.processes["node-b-receiver"].pid)
    receiver.suspend()  # node-b sends its update, and cannot receive the final model
    try:
        lab.await_row(lambda: lab.task(number).phase == "closing" or None)
        assert lab.api.post(f"/tasks/{number}/stop").status_code == 202
        assert lab.finish(number).resume_round == 1
    finally:
        receiver.resume()
    assert lab.api.post(f"/tasks/{number}/resume").status_code == 202
    assert lab.completed(number).reason == "1 rounds done"
    for node in ("node-a", "node-b"):
        lab.await_file(lab.node_spool(node) / "checkpoints" / f"task-{number:06d}.safetensors")


def test_a_pending_task_is_stopped_at_once(lab: Platform) -> None:
    first, second = lab.submit(num_rounds=1000), lab.submit()
    lab.await_round(first, 1)
    assert lab.api.post(f"/tasks/{second}/stop").status_code == 202
    assert lab.task(second).state == "stopped"
    lab.api.post(f"/tasks/{first}/stop")
    lab.finish(first)


def test_a_deleted_task_takes_its_files_along(lab: Platform) -> None:
    number = lab.submit(num_rounds=1)
    lab.completed(number)
    folder = lab.server_spool / "checkpoints" / f"task-{number}"
    assert folder.is_dir()
    assert lab.api.delete(f"/tasks/{number}").status_code in {200, 202, 204}
    lab.await_row(lambda: lab.store.tasks.get(number) is None or None)
    assert not folder.exists()


def test_a_model_that_diverges_ends_its_task_with_the_round(lab: Platform) -> None:
    task = lab.finish(lab.submit(local_learning_rate=100, local_epochs=5))
    assert task.state == "failed"
    assert task.reason.startswith("diverged in round ")


def test_data_whose_shape_does_not_fit_the_model_is_explained(lab: Platform) -> None:
    task = lab.finish(lab.submit(model="cifar_cnn"))
    assert task.state == "failed"
    assert "cifar_cnn" in task.reason
    assert "[8, 8]" in task.reason


def test_a_lost_signal_costs_seconds_never_a_task(lab: Platform) -> None:
    user = lab.store.users.by_name("researcher")
    assert user is not None
    # The row alone, as if the web had been cut off before it could send its signal.
    task = lab.store.tasks.create(user.id, small_settings(num_rounds=1), os.urandom(16).hex(), 0)
    assert lab.await_row(lambda: lab.task(task.number).state != TaskState.PENDING, seconds=30)
    lab.completed(task.number)


def test_no_polling_interval_shows_in_a_round(lab: Platform) -> None:
    number = lab.submit(model="logistic", local_batch_size=1000, num_rounds=40, evaluate_every=40)
    lab.completed(number)
    lengths = sorted(record.seconds["all"] for record in lab.store.rounds.of_task(number)[2:])
    # The shortest interval anywhere in the daemons is a quarter of a second. Waiting for it would show in every round,
    # a busy machine holds up most of them.
    assert lengths[len(lengths) // 10] < 0.25, lengths
