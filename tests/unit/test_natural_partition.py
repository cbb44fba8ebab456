"""The partition whose clients the data names: how formats read them, how plans and nodes divide them, what leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from plugin_support import INFO, attempt, hello

from fedsim.config import DataSetConfig
from fedsim.data import DataSet, Examples, load_dataset
from fedsim.data.load import dataset_digest, inspect_dataset
from fedsim.errors import BadInput
from fedsim.learning.blocks import divide_blocks
from fedsim.learning.examples import IntArray
from fedsim.learning.partitions import partition_of
from fedsim.learning.partitions.natural import clients_of_size, sizes_in_steps
from fedsim.learning.simulate import simulate
from fedsim.messages import DataSetInfo, GuardInfo, TaskReport
from fedsim.settings import TaskSettings
from fedsim.state_machines.candidates import Impossible, Waiting
from fedsim.state_machines.participants import Participants
from fedsim.state_machines.plan import Plan
from fedsim.web.catalogue import Catalogue, DataSetSummary, check_settings
from fedsim.web.errors import Fault
from fedsim.worker.jobs import DataLoaded, Load
from fedsim.worker.node_jobs import NodeJobs

SPEAKERS = ["b"] * 5 + ["a"] * 2 + ["c"] * 3 + ["d"]


def task(num_clients: int = 3, **changes: Any) -> TaskSettings:
    chosen = {"partition": "natural", "model": "logistic", "num_rounds": 2, "fraction_train": 1.0, **changes}
    return TaskSettings(num_clients=num_clients, local_epochs=1, **chosen)


def examples(clients: Sequence[int] | IntArray, seed: int = 0) -> Examples:
    features = np.random.default_rng(seed).normal(size=(len(clients), 4)).astype(np.float32)
    return Examples(features, np.arange(len(clients)) % 2, clients=np.array(clients, np.int64))


def config(path: str, **keys: Any) -> DataSetConfig:
    return DataSetConfig.model_validate({"name": "letters", "path": path, "access": "open", **keys})


def members(num_clients: int, **changes: Any) -> list[list[int]]:
    train = examples([1] * 5 + [0] * 2 + [2] * 3 + [3])
    divided = partition_of(task(num_clients, **changes), train)
    return [divided.indices(client).tolist() for client in range(num_clients)]


def test_the_largest_clients_take_part_in_the_order_of_their_names() -> None:
    assert members(4) == [[5, 6], [0, 1, 2, 3, 4], [7, 8, 9], [10]]
    assert members(3) == [[5, 6], [0, 1, 2, 3, 4], [7, 8, 9]]
    assert members(2) == [[0, 1, 2, 3, 4], [7, 8, 9]]
    drawn = {str(members(2, partition_options={"selection": "random"}, seed=seed)) for seed in range(20)}
    assert len(drawn) > 3


def test_more_clients_than_the_data_names_are_refused() -> None:
    with pytest.raises(BadInput, match="4 clients are asked for, and the data names 3 with at least 2 examples"):
        members(4, min_partition_size=2)
    with pytest.raises(BadInput, match="does not say to which client an example belongs"):
        partition_of(task(), Examples(np.zeros((4, 2), np.float32), np.zeros(4, np.int64)))


def test_arrays_and_tables_name_clients(tmp_path: Path) -> None:
    x, y = np.arange(22, dtype=np.float32).reshape(11, 2), np.arange(11) % 2
    np.savez(tmp_path / "x.npz", x=x, y=y, clients=np.array(SPEAKERS))
    rows = [f"{who},{a},{b},{label}" for who, (a, b), label in zip(SPEAKERS, x, y, strict=True)]
    (tmp_path / "x.csv").write_text("\n".join(["who,a,b,y", *rows]) + "\n", encoding="utf-8")
    pl.read_csv(tmp_path / "x.csv").write_parquet(tmp_path / "x.parquet")
    wanted = [1] * 5 + [0] * 2 + [2] * 3 + [3]
    keys = {"label_column": "y", "client_column": "who"}
    for found in (
        load_dataset(config("x.npz"), tmp_path),
        load_dataset(config("x.csv", **keys), tmp_path),
        load_dataset(config("x.parquet", **keys), tmp_path),
    ):
        assert found.train.clients is not None
        assert found.train.clients.tolist() == wanted
        assert found.feature_shape == (2,)
    shared = load_dataset(config("x.csv", test_share=0.3, validation_share=0.3, **keys), tmp_path).train
    assert shared.clients is not None
    assert shared.clients.tolist() == [wanted[int(row)] for row in shared.features[:, 0] / 2]


@pytest.mark.parametrize(
    ("clients", "problem"),
    [(np.zeros(10, np.int64), "must be the text or the whole number"), (np.zeros(11), "it must be the text")],
)
def test_an_array_of_clients_that_does_not_fit_is_named(tmp_path: Path, clients: Any, problem: str) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((11, 2)), y=np.arange(11) % 2, clients=clients)
    with pytest.raises(BadInput, match=rf"x\.npz: array clients .*{problem}"):
        load_dataset(config("x.npz"), tmp_path)


def test_a_row_of_no_client_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("who,a,y\nann,1,0\n,2,1\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"x\.csv: line 3: column who is empty; name the client of each row"):
        load_dataset(config("x.csv", label_column="y", client_column="who"), tmp_path)
    with pytest.raises(BadInput, match="no client_column 'author'; columns are who, a, y"):
        load_dataset(config("x.csv", label_column="y", client_column="author"), tmp_path)


def test_only_counts_of_open_data_leave_the_node(tmp_path: Path) -> None:
    names = np.array([f"speaker-{name}" for name in SPEAKERS])
    np.savez(tmp_path / "x.npz", x=np.eye(11), y=np.zeros(11, np.int64), clients=names)
    info = inspect_dataset(config("x.npz"), tmp_path)
    assert info.natural_clients == (4, 3, 1)
    assert "speaker-" not in info.model_dump_json()
    guarded = inspect_dataset(config("x.npz", access="guarded"), tmp_path, (tmp_path / "blocks", 2))
    assert guarded.natural_clients == ()


def test_the_digest_covers_clients_where_there_are_any() -> None:
    one, two = (DataSet(examples(clients), None, 2) for clients in ([0, 0, 1, 1], [0, 1, 0, 1]))
    assert dataset_digest(one) != dataset_digest(two)


def test_sizes_are_counted_in_powers_of_two() -> None:
    steps = sizes_in_steps(np.repeat(np.arange(4), [5, 2, 3, 1]))
    assert steps == (4, 3, 1)
    assert [clients_of_size(steps, least) for least in (0, 1, 2, 3, 4, 7, 8)] == [4, 4, 3, 3, 1, 1, 0]


def info(letter: str, *steps: int) -> DataSetInfo:
    return INFO.model_copy(update={"digest": letter * 64, "natural_clients": steps})


def planned(settings: TaskSettings, **infos: DataSetInfo) -> Plan | Waiting | Impossible:
    return attempt(settings, [hello(name, datasets=(one,)) for name, one in infos.items()])


def test_nodes_with_other_data_have_clients_of_their_own() -> None:
    made = planned(task(7, testset_from="a"), a=info("a", 8), b=info("b", 3))
    assert isinstance(made, Plan)
    assert [(share.first_client, share.num_clients) for share in made.shares] == [(0, 5), (5, 2)]
    assert made.dataset_digest is None
    assert made.assignment("b").own_clients
    short = planned(task(12), a=info("a", 8), b=info("b", 3))
    assert isinstance(short, Waiting)
    assert short.reason == "12 clients are wanted, the nodes a, b can simulate 11 together that their data names"


def test_nodes_with_the_same_data_divide_its_clients() -> None:
    made = planned(task(8), a=info("a", 8), b=info("a", 8))
    assert isinstance(made, Plan)
    assert [(share.first_client, share.num_clients) for share in made.shares] == [(0, 4), (4, 4)]
    assert not made.assignment("b").own_clients
    many = planned(task(9), a=info("a", 8), b=info("a", 8))
    assert isinstance(many, Impossible)
    assert many.reason == "mnist: 9 clients are too many: the data names at most 8 that are large enough"


def test_a_copy_among_other_data_is_left_out() -> None:
    made = planned(task(8, testset_from="a"), a=info("a", 8), b=info("a", 8), c=info("c", 8))
    assert isinstance(made, Plan)
    assert made.left_out == (("b", "has the same data as a, whose clients would take part twice"),)
    assert made.nodes == ("a", "c")


def test_guarded_data_and_data_without_clients_are_refused() -> None:
    guard = GuardInfo(secret_digest="c" * 64, block_size=20, num_blocks=30)
    waiting = planned(task(), a=INFO.model_copy(update={"guard": guard}), b=INFO, c=info("c", 8, 0))
    assert isinstance(waiting, Plan)
    assert dict(waiting.left_out) == {
        "a": "guards mnist in blocks of examples, which are not its clients': choose an open data set",
        "b": "has data of mnist that does not say to which client an example belongs",
    }
    with pytest.raises(BadInput, match="divides by client, and this data is guarded in blocks"):
        divide_blocks(task(), np.zeros(30, np.int64), 20, (0, 2), 1)


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({}, "partition", "does not say to which client an example belongs"),
        ({"open": False, "guarded": True}, "partition", "guarded data is divided into blocks"),
        ({"natural_clients": (9, 2)}, "num_clients", "must be at most 2: mnist names no more clients with at least 2"),
    ],
)
def test_what_does_not_fit_is_refused_at_submission(changes: dict[str, Any], field: str, problem: str) -> None:
    summary = DataSetSummary("mnist", ("a",), True, 600, 100, (28, 28), 10, 1, **changes)
    submitted = {"partition": "natural", "num_clients": 3, "min_partition_size": 2, "dataset": "mnist"}
    with pytest.raises(Fault) as refused:
        check_settings(submitted, Catalogue((), {"mnist": summary}))
    assert problem in str(refused.value.problems[field])


@pytest.mark.usefixtures("deterministic_torch")
def test_a_simulation_takes_the_clients_of_each_data_set() -> None:
    one, two = (DataSet(examples(np.arange(24) % 3, seed), None, 2) for seed in (1, 2))
    together = simulate(task(6, sampler="by_size"), [one, two])
    assert together.rounds[-1].num_examples == 48
    given = simulate(task(6, sampler="by_size"), [one, two], placement=[(0, 3), (3, 3)])
    assert together.digest == given.digest
    few = simulate(task(4, fraction_train=0.5), [one, two], placement=[(0, 2), (2, 2)], workers=2)
    assert few.rounds[-1].num_examples == 16
    with pytest.raises(BadInput, match="the nodes' data names 3 \\+ 3 clients with at least 1 examples"):
        simulate(task(5), [one, two])


@pytest.mark.parametrize("same", [False, True])
def test_workers_form_the_clients_that_the_plan_gives_them(tmp_path: Path, same: bool) -> None:
    infos, configs = {}, {}
    for number, node in enumerate(("a", "b")):
        x = np.random.default_rng(0 if same else number).normal(size=(44, 3)).astype(np.float32)
        names = np.array(SPEAKERS * 4 if same or node == "a" else ["x", "y"] * 22)
        np.savez(tmp_path / f"{node}.npz", x=x, y=np.arange(44) % 2, clients=names)
        configs[node] = config(f"{node}.npz", test_share=0.2, share=True)
        infos[node] = inspect_dataset(configs[node], tmp_path)
    made = planned(task(4, dataset="letters", min_partition_size=2, testset_from="a"), **infos)
    assert isinstance(made, Plan)
    assert made.own_clients is not same
    reported = Participants(made, None, {})
    for node in made.nodes:
        job = Load(assignment=made.assignment(node), dataset=configs[node], folder=tmp_path, min_examples=1)
        loaded = NodeJobs(1).do(job)
        assert isinstance(loaded, DataLoaded)
        assert (loaded.partition == "") is not same
        report = TaskReport(task=made.task, state="ready", num_examples=loaded.num_examples, partition=loaded.partition)
        assert reported.add_ready(node, report) is None
    data = [load_dataset(configs[node], tmp_path) for node in made.nodes]
    whole = [partition_of(made.settings, one.train, own=own) for one, own in zip(data, made.placement, strict=True)]
    if same:
        whole = [partition_of(made.settings, data[0].train)] * 2
    sizes = [
        partition.num_examples(client)
        for partition, (first, count) in zip(whole, made.placement, strict=True)
        for client in range(first, first + count)
    ]
    assert reported.counts == tuple(sizes)
    assert min(sizes) >= 2
