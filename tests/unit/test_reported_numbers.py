"""What nodes report is bounded: sizes of clients, capacity, losses, shapes; and whose test set serves."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from plugin_support import INFO, UID, attempt, hello

from fedsim.config import ServerConfig, TaskLimits
from fedsim.errors import BadInput
from fedsim.inbox.validation import check_metadata
from fedsim.learning.networks import check_size
from fedsim.learning.partitions import make_partition, make_partitioner, sizes_digest
from fedsim.messages import Hello, ModelSpec, TaskReport
from fedsim.server.nodes import Nodes
from fedsim.settings import TaskSettings
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.layout import Spool
from fedsim.state_machines.candidates import Impossible, Waiting
from fedsim.state_machines.participants import Participants
from fedsim.state_machines.plan import Plan
from fedsim.update import MAX_METRIC, Update, mean_metrics

SETTINGS = TaskSettings(dataset="mnist", model="logistic", partition="iid", num_clients=10, num_rounds=2)


def tried(
    hellos: list[Hello],
    settings: TaskSettings = SETTINGS,
    *,
    testset_from: str = "",
    known_digest: str | None = None,
    **limits: Any,
) -> Plan | Waiting | Impossible:
    asked = {"testset_from": testset_from, "known_digest": known_digest, "limits": TaskLimits(**limits)}
    return attempt(settings, hellos, **asked)


def made(*hellos: Hello, settings: TaskSettings = SETTINGS, **changes: Any) -> Plan:
    plan = tried(list(hellos), settings, **changes)
    assert isinstance(plan, Plan), plan
    return plan


def ready(sizes: list[int], partition: str = "") -> TaskReport:
    return TaskReport(task=UID, state="ready", num_examples=tuple((1, size) for size in sizes), partition=partition)


# ---------------------------------------------------------------- losses and metrics


@pytest.mark.parametrize("loss", [1.7e308, -1.7e308, 1e40])
def test_a_loss_that_no_engine_can_compute_is_refused_when_the_update_is_offered(loss: float) -> None:
    meta = {"base_round": 1, "num_examples": 5, "metrics": {"train_loss": loss}}
    file_id = FileId(kind=Kind.LOCALPARAM, task=UID, round=1, chunk=0)
    with pytest.raises(BadInput, match=r"its metadata is not a valid Update: .*train_loss"):
        check_metadata(meta, file_id, Role.CLIENT, Role.SERVER)
    meta["metrics"] = {"train_loss": 2.2e22}  # nonsense, but finite: a remark in the record
    check_metadata(meta, file_id, Role.CLIENT, Role.SERVER)


def test_a_model_is_offered_with_what_the_node_trains() -> None:
    file_id = FileId(kind=Kind.GLOBALPARAM, task=UID, round=1)
    check_metadata({"chunks": [{"id": 0, "clients": [1, 2]}]}, file_id, Role.SERVER, Role.CLIENT)
    with pytest.raises(BadInput, match=r"its metadata is not a valid Broadcast: .*chunks"):
        check_metadata({"chunks": [{"id": 0, "clients": []}]}, file_id, Role.SERVER, Role.CLIENT)


def test_the_mean_of_the_largest_losses_can_be_recorded() -> None:
    updates = [Update(base_round=1, num_examples=10**12, metrics={"train_loss": MAX_METRIC}) for _ in range(1000)]
    means = mean_metrics(updates)
    assert json.loads(json.dumps(means, allow_nan=False)) == {"train_loss": pytest.approx(MAX_METRIC)}
    assert sys.float_info.max > MAX_METRIC * 10**12 * 10**6


# ---------------------------------------------------------------- numbers of examples


@pytest.mark.parametrize("partition", ["iid", "shards"])
def test_sizes_that_follow_from_the_number_of_examples_are_computed_by_the_server(partition: str) -> None:
    settings = SETTINGS.model_copy(update={"partition": partition})
    divided = make_partition(settings, np.arange(607) % 3)
    size = make_partitioner(settings).size(607, settings.num_clients)
    assert {divided.num_examples(client) for client in range(10)} == {size} == {60}

    participants = Participants(made(hello("a"), settings=settings), None, {})
    lie = participants.add_ready("a", ready([60] * 9 + [10**12]))
    assert lie == "node a reported a client with 1000000000000 examples; with its 600 it has 60"
    assert participants.counts is None
    assert participants.add_ready("a", ready([60] * 10)) is None
    assert participants.counts == (60,) * 10


def test_a_bank_has_as_many_examples_as_it_announced() -> None:
    local = SETTINGS.model_copy(update={"partition": "local", "fraction_train": 1.0})
    participants = Participants(made(hello("a"), hello("b"), settings=local), None, {})
    assert participants.add_ready("a", ready([600])) is None
    assert participants.add_ready("b", ready([601])) == (
        "node b reported a client with 601 examples; with its 600 it has 600"
    )


DIRICHLET = SETTINGS.model_copy(update={"partition": "dirichlet", "num_clients": 6})
SIZES = [50, 150, 100, 120, 80, 100]


def test_nodes_with_the_same_data_divide_it_alike() -> None:
    plan = made(hello("a"), hello("b"), hello("c"), settings=DIRICHLET)
    whole, other = sizes_digest(SIZES), sizes_digest([600] * 6)

    def report(*digests: str, sizes: list[int] = SIZES) -> str | None:
        participants = Participants(plan, None, {})
        problems = [
            participants.add_ready(share.node, ready(sizes[share.first_client :][: share.num_clients], digest))
            for share, digest in zip(plan.shares, digests, strict=True)
        ]
        return next((problem for problem in problems if problem is not None), None)

    assert report(whole, whole, whole) is None
    assert report(whole, other, whole) == "node b divided the data otherwise than the other nodes"
    assert report(whole, other, "1" * 64) == "the nodes a, b, c divided the data differently"
    assert report(whole, whole, whole, sizes=[50, 150, 100, 120, 80, 101]) == (
        "the examples that the nodes a, b, c reported are not those of their partition"
    )
    assert report(whole, whole, whole, sizes=[50, 601, 100, 120, 80, 100]) == (
        "node a reported 651 examples, it announced 600"
    )


def test_a_node_with_most_of_the_weight_is_noted() -> None:
    few = INFO.model_copy(update={"digest": "c" * 64, "num_train": 30, "share_test": False})
    local = SETTINGS.model_copy(update={"partition": "local", "fraction_train": 1.0})
    plan = made(hello("a"), hello("b", datasets=(few,)), settings=local)
    participants = Participants(plan, None, {})
    participants.add_ready("a", ready([600]))
    participants.add_ready("b", ready([30]))
    assert participants.heavy == ("a has 95 % of the examples",)
    assert Participants(plan, (600, 600), {}).heavy == ()


# ---------------------------------------------------------------- what is announced


def test_a_node_is_given_no_more_clients_than_the_server_allows_it(tmp_path: Any) -> None:
    config = ServerConfig.model_validate(
        {"nodes": [{"name": "a"}, {"name": "b", "max_clients": 5}], "database": "sqlite:///x"}
    )
    nodes = Nodes(config, Spool(tmp_path))
    (tmp_path / "hello").mkdir()
    for name in "ab":
        announced = hello(name, clients=1_000_000)
        (tmp_path / "hello" / f"{name}.json").write_text(announced.model_dump_json(), encoding="utf-8")
    assert nodes.scan() == ["a", "b"]
    assert {name: found.clients for name, found in nodes.online().items()} == {"a": 1_000_000, "b": 5}


def test_a_node_with_other_data_under_a_known_name_takes_no_part_whatever_its_capacity() -> None:
    other = INFO.model_copy(update={"digest": "f" * 64})
    thief = hello("c", datasets=(other,), clients=1_000_000)
    assert tried([hello("a"), hello("b"), thief]).nodes == ("c",), "nothing is known yet"  # type: ignore[union-attr]
    plan = made(hello("a"), hello("b"), thief, known_digest=INFO.digest)
    assert plan.nodes == ("a", "b")
    assert "fedsim admin datasets --forget" in dict(plan.left_out)["c"]
    alone = tried([thief], known_digest=INFO.digest)
    assert isinstance(alone, Waiting)
    assert "than what is known as" in alone.reason
    local = SETTINGS.model_copy(update={"partition": "local"})
    assert "c" in made(hello("a"), thief, settings=local, testset_from="a", known_digest=INFO.digest).nodes


def test_a_node_that_trains_most_clients_is_noted() -> None:
    assert made(hello("a", clients=10), hello("b", clients=1_000_000)).notes == ("b trains 9 of 10 clients",)
    assert made(hello("a", clients=10), hello("b", clients=10)).notes == ()
    assert made(hello("b", clients=1_000_000)).notes == ()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_classes": 2}, "announces 10 classes of mnist, server.yml allows 2 (limits.max_classes)"),
        ({"max_features": 3}, "announces 784 features of mnist, server.yml allows 3 (limits.max_features)"),
        ({"max_examples": 599}, "announces 600 examples of mnist, server.yml allows 599 (limits.max_examples)"),
    ],
)
def test_a_data_set_beyond_the_servers_limits_is_left_out(limits: dict[str, int], reason: str) -> None:
    assert tried([hello("a")], **limits) == Waiting(f"no node can take it: a {reason}")


def test_a_models_parameters_are_counted_before_it_is_made() -> None:
    spec = ModelSpec(name="2nn", feature_shape=(10**6,), num_classes=10)
    with pytest.raises(BadInput, match=r"the model 2nn has 200,0\d\d,\d\d\d parameters here, server.yml allows 1,000"):
        check_size(spec, 1000, "server.yml")
    check_size(spec, 10**9, "server.yml")


# ---------------------------------------------------------------- the test set

OTHER = INFO.model_copy(update={"digest": "b" * 64})
LOCAL = SETTINGS.model_copy(update={"partition": "local", "fraction_train": 1.0})


def test_of_different_test_sets_one_is_to_be_named() -> None:
    nodes = [hello("a"), hello("b", datasets=(OTHER,))]
    unnamed = tried(nodes, LOCAL)
    assert isinstance(unnamed, Impossible)
    assert "the nodes a, b share different test sets of mnist: name one of them with testset_from" in unnamed.reason
    by_task = tried(nodes, LOCAL.model_copy(update={"testset_from": "b"}), testset_from="a")
    by_configuration = tried(nodes, LOCAL, testset_from="b")
    for plan in (by_task, by_configuration):
        assert isinstance(plan, Plan)
        assert plan.testset_from == "b"


def test_a_named_node_that_shares_no_test_set_is_waited_for() -> None:
    secret = INFO.model_copy(update={"share_test": False})
    nodes = [hello("a"), hello("b", datasets=(secret,))]
    assert tried(nodes, SETTINGS.model_copy(update={"testset_from": "b"})) == Waiting(
        "the test set of mnist is to come from b, which shares none (`share: true` in its client.yml)"
    )
    assert tried(nodes, testset_from="z") == Waiting(
        "the test set of mnist is to come from z, which does not take part"
    )


def test_equal_test_sets_need_no_name() -> None:
    assert made(hello("a"), hello("b")).testset_from == "a"
