"""What numbers mean: schemas of data sets, how they are compared, and how a data set is brought into a task's order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plugin_support import attempt, hello
from pydantic import ValidationError

from fedsim.client.announcing import make_hello
from fedsim.config import ClientConfig, DataSetConfig
from fedsim.data import DataSet, Examples, inspect_dataset, load_dataset
from fedsim.data.schema import array_schema
from fedsim.data_schema import DataSchema
from fedsim.errors import BadInput
from fedsim.learning.common_scale import apply_scale, fit, sums
from fedsim.learning.conform import conform, task_words
from fedsim.learning.simulate import simulate
from fedsim.messages import MAX_SCHEMA_BYTES, DataSetInfo
from fedsim.server.projection import loss_rise
from fedsim.settings import TaskSettings, parse_settings
from fedsim.state_machines.candidates import Impossible, Waiting
from fedsim.state_machines.plan import Plan
from fedsim.store.records import RoundRecord
from fedsim.worker.inspector import Inspected

pytestmark = pytest.mark.usefixtures("deterministic_torch")
LOCAL = TaskSettings(
    dataset="bank", model="logistic", partition="local", fraction_train=1, num_rounds=3, local_learning_rate=0.1
)
TABLE = DataSchema(kind="table", features=("a", "b"), labels=("no", "yes"))


def write(folder: Path, seed: int, order: str, *, third: str = "b") -> None:
    """A table in which `y` says whether a > b, with its columns in an order."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = [",".join(third if name == "b" else name for name in order)]
    for a, b in rng.integers(0, 10, (60, 2)):
        cells = {"a": a, "b": b, "y": "yes" if a > b else "no"}
        lines.append(",".join(str(cells[name]) for name in order))
    (folder / "bank.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def bank(folder: Path, seed: int, order: str = "yab", *, third: str = "b", **keys: Any) -> tuple[DataSet, DataSetInfo]:
    write(folder, seed, order, third=third)
    keys = {"labels": {"no": 0, "yes": 1}, "test_share": 0.25, **keys}
    config = DataSetConfig(name="bank", path=Path("bank.csv"), label_column="y", share=True, **keys)
    return load_dataset(config, folder), inspect_dataset(config, folder)


def tried(
    infos: dict[str, DataSetInfo], settings: TaskSettings = LOCAL, own: DataSetInfo | None = None
) -> Plan | Waiting | Impossible:
    hellos = [hello(name, clients=50, datasets=(info,)) for name, info in infos.items()]
    return attempt(settings, hellos, server_dataset=own, testset_from=min(infos))


def made(infos: dict[str, DataSetInfo], settings: TaskSettings = LOCAL, own: DataSetInfo | None = None) -> Plan:
    plan = tried(infos, settings, own)
    assert isinstance(plan, Plan), plan
    return plan


def trained(plan: Plan, banks: dict[str, DataSet]) -> str:
    """The digest of the task on the data as its nodes load it."""
    assert plan.data_schema is not None
    loaded = [conform(banks[node], plan.data_schema, plan.model_spec.num_classes) for node in plan.nodes]
    return simulate(plan.settings, loaded).digest


@pytest.mark.parametrize(
    "change",
    [
        {"order": "yba"},
        {"order": "bya"},
        {"labels": {"yes": 0, "no": 1}},
        {"order": "bay", "labels": {"yes": 0, "no": 1}},
    ],
)
@pytest.mark.parametrize("odd", ["bank-0", "bank-1"])
def test_columns_and_labels_in_another_order_give_the_digest_of_equal_files(
    tmp_path: Path, change: dict[str, Any], odd: str
) -> None:
    def run(changes: dict[str, Any]) -> str:
        names = [f"bank-{number}" for number in range(3)]
        both = {
            name: bank(tmp_path / name, number, **(changes if name == odd else {})) for number, name in enumerate(names)
        }
        plan = made({name: info for name, (_, info) in both.items()})
        assert (plan.nodes, plan.left_out) == (tuple(names), ())
        return trained(plan, {name: dataset for name, (dataset, _) in both.items()})

    assert run(change) == run({})


@pytest.mark.parametrize(
    ("keys", "difference"),
    [
        ({"third": "c"}, "lacks the columns b of the data of a and has c instead"),
        (
            {"labels": {"no": 0, "yes": 1, "maybe": 2}},
            "has the label maybe, which the task does not have (it has no",
        ),
        ({"labels": {"no": 0, "yes": 1}, "scale": "standard"}, "has the scaling “standard, fitted on each node's own"),
        ({"scale_values": {"a": [1, 2]}}, "has the scaling “fixed values”, the data of a “none, as in the file”"),
    ],
)
def test_a_node_whose_numbers_mean_something_else_is_left_out_by_name_with_the_difference(
    tmp_path: Path, keys: dict[str, Any], difference: str
) -> None:
    infos = {name: bank(tmp_path / name, 1)[1] for name in "ac"}
    infos["b"] = bank(tmp_path / "b", 2, **keys)[1]
    plan = made(infos)
    assert plan.nodes == ("a", "c")
    (left,) = plan.left_out
    assert left[0] == "b"
    assert difference in left[1]
    waiting = tried(infos, LOCAL.model_copy(update={"nodes": ("a", "b")}))
    assert isinstance(waiting, Waiting), "a node that the task names is waited for"
    assert waiting.reason.startswith("the task names nodes that cannot take part: b ")
    assert difference in waiting.reason


def test_the_first_node_that_a_task_names_decides_what_its_numbers_mean(tmp_path: Path) -> None:
    infos = {name: bank(tmp_path / name, 1)[1] for name in "ac"}
    infos["b"] = bank(tmp_path / "b", 2, order="bya", labels={"yes": 0, "no": 1, "maybe": 2})[1]
    plan = made(infos, LOCAL.model_copy(update={"nodes": ("b", "a")}))
    assert (plan.nodes, plan.schema_from, plan.model_spec.num_classes) == (("a", "b"), "b", 3)
    assert plan.data_schema is not None
    assert (plan.data_schema.features, plan.data_schema.labels) == (("b", "a"), ("yes", "no", "maybe"))
    assert plan.left_out == (("c", "is not named by the task, which takes the nodes b, a"),)
    assert made(infos).schema_from == "a", "else the order of most counts"
    offline = tried(infos, LOCAL.model_copy(update={"nodes": ("z",)}))
    assert offline == Waiting("the task names nodes that cannot take part: z is not online")


def test_a_class_counts_once_two_nodes_or_the_test_set_have_it() -> None:
    nine, ten, eleven = ([str(number) for number in range(count)] for count in (9, 10, 11))
    assert task_words([nine, ten]) == tuple(nine)
    assert task_words([ten, nine]) == tuple(nine)
    assert task_words([nine, nine, nine, ten, ten]) == tuple(ten)
    assert task_words([nine, ten, eleven]) == tuple(ten)
    assert task_words([nine, ten], ten) == tuple(ten)
    assert task_words([["good", "bad"], ["0", "1"], ["0", "1"]]) == ("0", "1")
    assert task_words([["a", "", "c"]]) == ("a", "", "c")


def test_a_node_that_announces_no_schema_is_left_out_by_name(tmp_path: Path) -> None:
    info = bank(tmp_path, 1)[1]
    old = info.model_copy(update={"data_schema": None})
    plan = made({"a": info, "b": old})
    ((node, reason),) = plan.left_out
    assert node == "b"
    assert reason.startswith("does not announce the columns and labels of bank (version 1): upgrade it")


def test_each_node_that_is_online_and_not_needed_is_listed(tmp_path: Path) -> None:
    info = bank(tmp_path, 1)[1]
    other = info.model_copy(update={"digest": "f" * 64})
    shared = LOCAL.model_copy(update={"partition": "iid", "num_clients": 4, "num_nodes": 1})
    plan = made({"a": info, "b": info, "c": other}, shared)
    assert dict(plan.left_out) == {
        "b": "is not needed: the task takes 1 nodes",
        "c": f"has other data (digest {'f' * 12}) than a ({info.digest[:12]})",
    }


def test_the_servers_test_set_is_compared_too(tmp_path: Path) -> None:
    infos = {name: bank(tmp_path / name, 1)[1] for name in "ab"}
    assert made(infos, own=bank(tmp_path / "own", 3, order="bya")[1]).testset_from is None
    scaled = made(infos, own=bank(tmp_path / "own", 3, scale="minmax")[1])
    assert scaled.notes[0].startswith("the server's test set has the scaling “minmax")
    refused = tried(infos, own=bank(tmp_path / "own", 3, third="z")[1])
    assert isinstance(refused, Impossible)
    assert "the server's data set bank lacks the columns b of the data of a and has z instead" in refused.reason


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (np.full((2, 4, 4), 255, np.uint8), ("H W", 1, (0, 255))),
        (np.full((2, 3, 4, 4), 0.5, np.float32), ("C H W", 3, (0, 1))),
        (np.full((2, 4, 4), -0.5, np.float32), ("H W", 1, (-1, 1))),
        (np.full((2, 4, 4), 300, np.float32), ("H W", 1, None)),
    ],
)
def test_images_are_described_by_layout_channels_and_range(
    features: Any, expected: tuple[str, int, tuple[int, int] | None]
) -> None:
    schema = array_schema(DataSet(Examples(features, np.array([0, 1])), None, 2))
    assert (schema.layout, schema.channels, schema.value_range) == expected


def test_images_that_are_not_divided_differ_from_those_that_are() -> None:
    pixels, divided = (
        DataSchema(kind="images", layout="H W", channels=1, value_range=(0, most)) for most in (255.0, 1.0)
    )
    assert pixels.difference(divided) == (
        "holds images (H W, 1 channel, from 0 to 255), the task's data images (H W, 1 channel, from 0 to 1)"
    )
    assert divided.difference(TABLE).startswith("holds images")


def test_features_far_out_of_scale_are_reported_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("at,b,y\n1700000000000,1,0\n1700000000001,2,1\n", encoding="utf-8")
    config = DataSetConfig(name="t", path=Path("t.csv"), label_column="y")
    (note,) = inspect_dataset(config, tmp_path).notes
    assert note == "the column at reaches values in the order of 1e12, with which training hardly works: set `scale`"
    assert (
        inspect_dataset(
            config.model_copy(update={"format_options": {"label_column": "y", "scale": "minmax"}}), tmp_path
        ).notes
        == ()
    )
    np.savez(tmp_path / "i.npz", x=np.full((4, 5, 5), 255, np.float32), y=np.array([0, 1, 0, 1]))
    (note,) = inspect_dataset(DataSetConfig(name="i", path=Path("i.npz")), tmp_path).notes
    assert "divide them, or store them as uint8" in note


def record(number: int, train_loss: float | None = None, loss: float | None = None) -> RoundRecord:
    return RoundRecord(
        round=number,
        digest="",
        num_examples=1,
        seconds={},
        bytes_sent=0,
        bytes_received=0,
        cohort_size=1,
        missing=(),
        finished_at=0,
        train_metrics={"train_loss": train_loss},
        metrics={"loss": loss},
    )


def test_a_loss_that_rose_a_billionfold_and_stayed_finite_is_noted() -> None:
    assert loss_rise([]) is None
    assert loss_rise([record(2, 1e8), record(1, 2.3), record(0, None, 2.4)]) is None
    rise = loss_rise([record(2, 2.303), record(1, 5.6e11), record(0, None, 30.0)])
    assert rise is not None
    assert rise.startswith("the loss rose from 30 to 5.6e+11 in round 1")


def test_what_does_not_fit_the_task_is_refused_on_the_node_as_well(tmp_path: Path) -> None:
    dataset = bank(tmp_path, 1)[0]
    with pytest.raises(BadInput, match="lacks the columns z"):
        conform(dataset, TABLE.model_copy(update={"features": ("a", "z")}), 2)
    with pytest.raises(BadInput, match="has the labels yes; the task has no, never"):
        conform(dataset, TABLE.model_copy(update={"labels": ("no", "never")}), 2)
    assert conform(dataset, TABLE, 2) is dataset, "equal data is not copied"


def test_a_simulation_conforms_data_sets_as_the_platform_does(tmp_path: Path) -> None:
    first, second = bank(tmp_path / "a", 1)[0], bank(tmp_path / "b", 2)[0]
    settings = LOCAL.model_copy(update={"num_clients": 2})
    equal = simulate(settings, [first, second]).digest
    assert simulate(settings, [first, bank(tmp_path / "b", 2, order="bya")[0]]).digest == equal
    with pytest.raises(BadInput, match="lacks the columns"):
        simulate(settings, [first, bank(tmp_path / "b", 2, third="z")[0]])


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": ["a", "a"]},
        {"features": ["x" * 301]},
        {"features": [str(number) for number in range(100_001)]},
        {"labels": ["x" * 301, "y"]},
        {"scale_values": {"a": [float("nan"), 1]}},
        {"kind": "a thing"},
        {"scaling": "../x"},
    ],
)
def test_a_peers_schema_is_bounded(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DataSchema.model_validate({"kind": "table", **wrong})


def test_a_schema_that_is_too_long_to_announce_is_left_out_with_the_reason() -> None:
    config = ClientConfig.model_validate(
        {"name": "a", "server": {"port": 1}, "datasets": [{"name": "bank", "path": "bank"}]}
    )
    wide = TABLE.model_copy(update={"features": tuple(f"{number:0300}" for number in range(MAX_SCHEMA_BYTES // 300))})
    info = DataSetInfo(
        name="bank", digest="0" * 64, num_train=1, num_test=0, feature_shape=(2,), num_classes=2, data_schema=wide
    )
    hello = make_hello(config, Inspected((info, info.model_copy(update={"data_schema": TABLE}))), [], [])
    assert [dataset.data_schema for dataset in hello.datasets] == [None, TABLE]
    assert "cannot be used; give them shorter names" in hello.problems[0]


def test_nodes_are_named_once_and_instead_of_their_number() -> None:
    assert parse_settings({"nodes": "a, b"})[0].nodes == ("a", "b")
    for wrong, problem in (({"nodes": ["a", "a"]}, "once"), ({"nodes": "a,b", "num_nodes": 3}, "leave num_nodes at 0")):
        with pytest.raises(BadInput, match=problem):
            parse_settings(wrong)


def test_a_common_scale_is_that_of_all_rows_together() -> None:
    rng = np.random.default_rng(1)
    parts = [Examples(rng.normal(50, 9, (size, 2)).astype(np.float32), np.zeros(size, np.int64)) for size in (30, 70)]
    for part in parts:
        part.features[:, 1] = 7  # a constant column becomes 0
    scale = fit({str(number): sums(part) for number, part in enumerate(parts)}, 2)
    together = np.concatenate([apply_scale(part, scale).features for part in parts])
    assert together[:, 0].mean() == pytest.approx(0, abs=1e-5)
    assert together[:, 0].std() == pytest.approx(1, abs=1e-5)
    assert not together[:, 1].any()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"count": 0, "sum": [1], "squares": [1]},
        {"count": True, "sum": [1], "squares": [1]},
        {"count": 10**13, "sum": [1], "squares": [1]},
        {"count": 1, "sum": [1, 2], "squares": [1]},
        {"count": 1, "sum": ["1"], "squares": [1]},
        {"count": 1, "sum": [1], "squares": [float("inf")]},
    ],
)
def test_sums_that_a_node_cannot_have_reported_are_refused_with_its_name(answer: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="node b reported no"):
        fit({"a": {"count": 1, "sum": [1.0], "squares": [1.0]}, "b": answer}, 1)
