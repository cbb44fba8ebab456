"""Pictures of partitions, their distances, and the partition that changes features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from plugin_support import INFO, hello, planned

from fedsim import plugins
from fedsim.config import DataSetConfig
from fedsim.data import DataSet, Examples, inspect_dataset
from fedsim.data_schema import DataSchema
from fedsim.errors import BadInput
from fedsim.label_counts import shown_counts
from fedsim.learning.blocks import divide_blocks
from fedsim.learning.engines import ClientData
from fedsim.learning.partition_view import (
    KnownLabels,
    PartitionView,
    named_counts,
    strata_names,
    view_known,
    view_partition,
)
from fedsim.learning.partitions import make_partition
from fedsim.learning.partitions.dirichlet import Dirichlet
from fedsim.learning.simulate import simulate
from fedsim.messages import DataSetInfo, GuardInfo
from fedsim.settings import TaskSettings
from fedsim.state_machines.guarded import unwilling
from fedsim.state_machines.shares import RecordedPlan
from fedsim.web.catalogue import Catalogue, DataSetSummary, check_settings
from fedsim.web.errors import Fault

pytestmark = pytest.mark.usefixtures("deterministic_torch")


def data(count: int = 400, size: int = 5) -> DataSet:
    rng = np.random.default_rng(6)
    labels = rng.integers(4, size=count).astype(np.int64)
    return DataSet(Examples(rng.normal(size=(count, size)).astype(np.float32), labels), None, 4)


def task(partition: str, **changes: Any) -> TaskSettings:
    return TaskSettings(**{"model": "logistic", "partition": partition, "num_clients": 10, **changes})


def total_variation(one: Any, other: Any) -> float:
    return sum(abs(a / sum(one) - b / sum(other)) for a, b in zip(one, other, strict=True)) / 2


def test_distances_are_total_variations() -> None:
    settings = task("dirichlet", partition_options={"alpha": 0.3})
    view = view_partition(settings, data())
    rows = view.counts.tolist()
    together = [sum(column) for column in zip(*rows, strict=True)]
    assert view.counts.sum() == 400
    assert view.sizes.tolist() == [sum(row) for row in rows]
    assert view.distances == pytest.approx([total_variation(row, together) for row in rows], abs=1e-12)
    weighted = sum(sum(row) * total_variation(row, together) for row in rows) / 400
    assert view.mean_distance == pytest.approx(weighted, abs=1e-12)
    pairs = [total_variation(one, other) for one, other in combinations(rows, 2)]
    assert view.pair_distance == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    even = view_partition(settings, data(), partition=Dirichlet(Dirichlet.Options(alpha=1000.0)))
    assert even.pair_distance < view.pair_distance


def test_clients_without_a_common_label_are_as_far_apart_as_possible() -> None:
    view = PartitionView(np.diag([10, 10, 10]))
    assert view.pair_distance == 1.0
    assert view.distances == pytest.approx([2 / 3] * 3)
    assert PartitionView(np.array([[3, 4]])).pair_distance == 0.0


def test_a_picture_shows_each_client_and_label() -> None:
    view = PartitionView(np.array([[8, 0, 8], [0, 16, 0], [0, 0, 0]]))
    lines = str(view).splitlines()
    assert lines[1:4] == ["     0 |▒ ▒| 16", "     1 | █ | 16", "     2 |   | 0"]
    picture = ET.fromstring(view.svg())  # noqa: S314 - our own
    (discs,) = (group for group in picture.iter() if group.get("class") == "discs")
    drawn = {float(path.get("stroke-width", 0)): path.get("d", "").count("M") for path in discs}
    (small, two), (large, one) = sorted(drawn.items())
    assert (two, one) == (2, 1)
    assert (small / large) ** 2 == pytest.approx(1 / 2, rel=0.15), "the area is in proportion"
    (sizes,) = (path for path in picture.iter() if path.get("class") == "sizes")
    assert sizes.get("d", "").count("M") == 2, "a client without examples has no bar"
    words = PartitionView(np.eye(2, dtype=np.int64), ("<b>", "x" * 30)).svg()
    assert "&lt;b&gt;</text>" in words
    assert "x" * 13 + "…" in words
    assert "and 50 more clients" in str(PartitionView(np.ones((150, 2), np.int64)))


def test_a_picture_of_a_large_task_is_small() -> None:
    counts = np.random.default_rng(1).integers(1, 500, size=(1000, 200))
    assert len(PartitionView(counts).svg()) < 60_000


EXACT = ["dirichlet", "balanced", "labels_per_client", "shards"]


@pytest.mark.parametrize("name", [*EXACT, "iid", "quantity"])
def test_counts_of_labels_are_enough_for_a_picture(name: str) -> None:
    options: dict[str, Any] = {"balanced": True} if name == "balanced" else {}
    settings = task("dirichlet" if name == "balanced" else name, partition_options=options, seed=5)
    dataset = data()
    labels = dataset.train.labels.tolist()
    known = KnownLabels("a", 400, {str(label): labels.count(label) for label in range(4)})
    whole, counted = view_partition(settings, dataset), view_known(settings, [known])
    assert counted.sizes.tolist() == whole.sizes.tolist()
    assert counted.exact is (name in EXACT)
    assert (counted.counts.tolist() == whole.counts.tolist()) is counted.exact


def test_of_data_of_nodes_each_is_a_client_and_labels_are_matched_by_name() -> None:
    known = [KnownLabels("a", 30, {"no": 20, "yes": 10}), KnownLabels("b", 50, {"yes": 35, "no": None, "other": None})]
    view = view_known(task("local"), known, "rest")
    assert (view.clients, view.labels) == (("a", "b"), ("no", "yes", "rest"))
    assert view.counts.tolist() == [[20, 10, 0], [0, 35, 15]]
    alone = view_known(task("dirichlet", num_clients=3), known[1:], "rest")
    assert (alone.labels, alone.exact, int(alone.sizes.sum())) == (("yes", "rest"), False, 50)
    with pytest.raises(BadInput, match="depends on more than the labels"), unknown_partition() as name:
        view_known(task(name), known[:1])


@contextmanager
def unknown_partition() -> Iterator[str]:
    """A partition of a package that does not say what follows from the counts of labels."""
    point = EntryPoint("odd", "fedsim.learning.partitions:Partitioner", plugins.PARTITIONS)
    with plugins.registered(plugins.PARTITIONS, point):
        yield "odd"


@pytest.mark.parametrize(
    ("counts", "least", "guarded", "shown"),
    [
        ([120, 80, 15], 10, False, (120, 80, 15)),
        ([123, 87, 15], 10, True, (120, 87, 15)),
        ([120, 80, 0], 10, False, (120, 80, None)),
        ([120, 80, 3], 10, False, (120, None, None)),  # 3 alone would follow from the number of all examples
        ([120, 11, 9, 8], 10, False, (120, 11, None, None)),
        ([4, 3], 10, False, (None, None)),
    ],
)
def test_small_counts_are_left_out_and_do_not_follow_from_the_others(
    counts: list[int], least: int, guarded: bool, shown: tuple[int | None, ...]
) -> None:
    found = shown_counts(counts, least, guarded=guarded)
    assert found == shown
    hidden = [count for count, kept in zip(counts, found, strict=True) if kept is None]
    assert sum(hidden) == 0 or sum(hidden) >= min(least, sum(counts))


def test_counts_of_more_examples_than_there_are_say_nothing() -> None:
    assert named_counts(INFO.model_copy(update={"num_train": 30, "label_counts": (10, 20)})) == {"0": 10, "1": 20}
    assert named_counts(INFO.model_copy(update={"num_train": 30, "label_counts": (10, 10**10)})) is None


def test_a_plan_records_the_counts_that_a_picture_needs() -> None:
    counts = (60,) * 9 + (None,)
    shown = INFO.model_copy(update={"label_counts": counts})
    guarded = shown.model_copy(
        update={"guard": GuardInfo(secret_digest="c" * 64, block_size=20, num_blocks=30), "digest": "d" * 64}
    )

    def recorded(partition: str, **datasets: DataSetInfo) -> dict[str, Any]:
        hellos = [hello(node, datasets=(info,)) for node, info in datasets.items()]
        plan = planned(*hellos, settings=TaskSettings(partition=partition, num_clients=4))
        again = RecordedPlan.model_validate_json(plan.record.model_dump_json())
        return {share.node: share.label_counts for share in again.shares}

    by_name = {str(label): count for label, count in enumerate(counts)}
    assert recorded("iid", a=INFO, b=shown, c=shown) == {"a": None, "b": by_name, "c": None}, "once for equal data"
    assert recorded("local", a=INFO, b=shown, c=shown) == {"a": None, "b": by_name, "c": by_name}
    assert recorded("iid", a=guarded, b=guarded) == {"a": None, "b": None}, "each node divides its own"
    assert recorded("local", a=guarded) == {"a": by_name}


def test_what_a_node_inspects_has_counts_only_if_its_owner_shows_them(tmp_path: Path) -> None:
    rows = "".join(f"{row},{row % 3}\n" for row in range(60))
    (tmp_path / "data.csv").write_text(f"x,y\n{rows}", encoding="utf-8")
    listed = {"name": "d", "path": "data.csv", "label_column": "y"}
    for further, guard, expected in (
        ({"access": "open"}, None, None),
        ({"access": "open", "show_labels": True}, None, (20, 20, 20)),
        ({"show_labels": True}, (tmp_path / "d.npz", 15), (15, 15, 15)),
    ):
        config = DataSetConfig.model_validate(listed | further)
        assert inspect_dataset(config, tmp_path, guard).label_counts == expected


def test_rows_and_document_hold_every_client() -> None:
    view = PartitionView(np.array([[8, 0], [1, 3]]), ("no", "yes"), ("a", "b"))
    assert list(view.csv_rows()) == [
        ["client", "num_examples", "distance", "label_no", "label_yes"],
        ["a", 8, pytest.approx(0.25), 8, 0],
        ["b", 4, pytest.approx(0.5), 1, 3],
    ]
    document = view.document()
    assert (document["counts"], document["sizes"]) == ([[8, 0], [1, 3]], [8, 4])
    again = PartitionView.of_document(document)
    assert (again.document(), again.label_names, again.clients) == (document, view.label_names, view.clients)
    assert document["pair_distance"] == pytest.approx(0.75)
    assert view.size_quantiles == (4, 5, 6, 7, 8)


def test_labels_are_named_as_partitions_see_them() -> None:
    numbers = DataSchema(kind="arrays", targets="numbers", labels=("price",))
    assert strata_names(numbers, 3) == ("tenth 1", "tenth 2", "tenth 3")
    assert strata_names(DataSchema(kind="arrays", targets="flags", labels=("a", "b")), 3) == ("a", "b", "none")
    assert strata_names(DataSchema(kind="arrays", labels=("no", "yes")), 2) == ("no", "yes")
    assert strata_names(DataSchema(kind="arrays"), 2) == ("0", "1")


# ---------------------------------------------------------------- feature_noise


def test_noise_grows_with_the_clients_number() -> None:
    settings = task("feature_noise", partition_options={"sigma": 4.0}, num_clients=4, seed=3)
    train = data(2000, 60).train
    noisy, plain = (
        ClientData(settings, train, make_partition(chosen, train.labels))
        for chosen in (settings, settings.model_copy(update={"partition": "iid", "partition_options": {}}))
    )
    for client in range(4):
        (features, labels), (before, others) = noisy.examples(client), plain.examples(client)
        assert labels.tolist() == others.tolist()
        noise = features - before
        assert float(noise.var()) == pytest.approx(4.0 * (client + 1) / 4, rel=0.05)
        assert abs(float(noise.mean())) < 0.05
        assert (features == noisy.examples(client)[0]).all(), "the same in each round"
    assert abs(np.corrcoef(*((noisy.examples(k)[0] - plain.examples(k)[0]).ravel() for k in (2, 3)))[0, 1]) < 0.03


def test_a_task_with_noise_is_reproducible() -> None:
    settings = task("feature_noise", num_rounds=2, local_epochs=1)
    one = simulate(settings, data(), chunk_clients=1)
    assert one.digest == simulate(settings, data(), chunk_clients=1, workers=2).digest
    assert one.digest != simulate(task("iid", num_rounds=2, local_epochs=1), data(), chunk_clients=1).digest


def test_guarded_data_is_not_changed() -> None:
    settings = TaskSettings(partition="feature_noise")
    info = INFO.model_copy(update={"guard": GuardInfo(secret_digest="c" * 64, block_size=20, num_blocks=30)})
    assert "the partition feature_noise changes features" in str(unwilling(settings, hello("a"), info))
    with pytest.raises(BadInput, match="changes features, and this data is guarded"):
        divide_blocks(settings, np.zeros(30, np.int64), 20, (0, 2), 1)
    guarded = DataSetSummary("mnist", ("a",), True, 600, 100, (28, 28), 10, 1, guarded=True, open=False)
    with pytest.raises(Fault) as refused:
        check_settings({"partition": "feature_noise"}, Catalogue((), {"mnist": guarded}))
    assert "changes features" in str(refused.value.problems["partition"])
