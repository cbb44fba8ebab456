"""Updates on their way from a worker to the server: what a node's daemon knows of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from fedsim.array_layout import Layout
from fedsim.errors import BadInput
from fedsim.messages import EngineInfo, read_message
from fedsim.server.task_arrivals import TaskArrivals, received_update
from fedsim.spool.files import FileId, Kind, metadata_path
from fedsim.spool.layout import Arrived, Metadata
from fedsim.spool.npy import hash_file, open_vector
from fedsim.spool.updates import UpdateIndex, update_path, write_update
from fedsim.state_machines.shares import NodeShare
from fedsim.state_machines.task_events import UpdateArrived
from fedsim.update import PARAMETERS, ClientFigures, Update, mean_metric


def update(chunk: int = 0, client: int | None = None, *, base_round: int = 1, loss: float = 0.5) -> Update:
    return Update(base_round=base_round, chunk=chunk, client=client, num_examples=150, metrics={"train_loss": loss})


def written(folder: Path, *updates: Update) -> list[Update]:
    arrays = {PARAMETERS: np.arange(10, dtype=np.float32)}
    return [write_update(folder, one.with_arrays(arrays), Layout({PARAMETERS: (10,)})) for one in updates]


def test_a_written_update_names_its_file_by_digest_and_size_and_holds_its_arrays_no_longer(tmp_path: Path) -> None:
    before = update(3, 17, base_round=7).with_arrays({"parameters": np.zeros(10, np.float32)})
    (after,) = written(tmp_path, before)
    path = tmp_path / "round-000007" / "chunk-000003.client-000017.npy"
    assert update_path(tmp_path, after) == path
    assert (after.digest, after.size) == (hash_file(path), path.stat().st_size)
    assert len(open_vector(path)) == 10
    assert not after.arrays
    assert "parameters" in before.arrays


def test_the_folder_is_read_once_and_then_known_from_what_the_workers_report(tmp_path: Path) -> None:
    found = written(tmp_path, update(0), update(1, 4), update(1, 5), update(0, base_round=2))
    index = UpdateIndex(tmp_path).open()
    assert index.all() == found
    assert index.of_chunk(1, 1) == found[1:3]
    (new,) = written(tmp_path, update(2))
    assert index.of_chunk(1, 2) == [], "the folder is not read again"
    index.add([new])
    index.add([new])
    assert index.of_chunk(1, 2) == [new]
    assert index.of_round(1) == [*found[:3], new]


def test_an_update_without_its_file_or_that_cannot_be_read_does_not_count(tmp_path: Path) -> None:
    first, second, third = written(tmp_path, update(0), update(1), update(2))
    update_path(tmp_path, first).unlink()
    metadata_path(update_path(tmp_path, second)).write_text("{}")
    assert UpdateIndex(tmp_path).open().all() == [third]


def test_used_updates_are_removed_also_those_that_are_only_half_written(tmp_path: Path) -> None:
    kept = written(tmp_path, update(0), update(0, base_round=2), update(0, base_round=3))[2:]
    half = update_path(tmp_path, update(1, base_round=2))
    half.write_bytes(b"half")
    index = UpdateIndex(tmp_path).open()
    index.clear(through=2)
    assert index.all() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["round-000003"]


def test_a_peer_can_put_no_arrays_into_an_update_and_no_numbers_that_are_none() -> None:
    sent = update().model_dump(mode="json") | {"arrays": {"parameters": [1.0]}, "_arrays": {"parameters": [1.0]}}
    assert not read_message(Update, sent, "it").arrays
    with pytest.raises(BadInput, match="num_examples"):
        read_message(Update, sent | {"num_examples": 0}, "it")
    with pytest.raises(BadInput, match="train_loss"):
        read_message(Update, sent | {"metrics": {"train_loss": float("nan")}}, "it")


def test_a_metric_is_the_mean_over_the_examples_of_the_updates_that_report_it() -> None:
    updates = [update(loss=1.0), update(loss=2.0).model_copy(update={"num_examples": 50})]
    silent = updates[0].model_copy(update={"metrics": {}})
    assert mean_metric([*updates, silent], "train_loss") == pytest.approx(1.25)
    assert mean_metric([silent], "train_loss") is None


def test_a_file_holds_the_declared_arrays_one_after_another(tmp_path: Path) -> None:
    layout = Layout({"parameters": (4,), "control": (2, 3)})
    arrays = {"control": np.ones((2, 3), np.float32), "parameters": np.arange(4, dtype=np.float32)}
    vector = layout.flatten(arrays)
    assert vector.tolist() == [0, 1, 2, 3, 1, 1, 1, 1, 1, 1]
    write_update(tmp_path, update().with_arrays(arrays), layout)
    views = layout.views(open_vector(update_path(tmp_path, update()), layout.size))
    assert list(views) == ["parameters", "control"]
    assert all(np.array_equal(views[name], arrays[name]) for name in arrays)
    with pytest.raises(BadInput, match="are declared"):
        layout.flatten({"parameters": arrays["parameters"]})


def test_a_single_flat_array_is_written_without_a_copy() -> None:
    vector = np.zeros(4, np.float32)
    assert np.shares_memory(Layout({"parameters": (4,)}).flatten({"parameters": vector}), vector)


@pytest.mark.parametrize(
    ("trained_from", "servers", "taken"),
    [("a" * 64, "a" * 64, True), ("a" * 64, "b" * 64, False), ("", "b" * 64, True), ("a" * 64, None, True)],
)
def test_an_update_that_was_trained_from_another_model_of_its_round_is_not_used(
    tmp_path: Path, trained_from: str, servers: str | None, taken: bool
) -> None:
    file = FileId(kind=Kind.LOCALPARAM, task="5" * 32, round=3, chunk=0)
    path = tmp_path / "chunk-000000.npy"
    meta = update(base_round=3).model_copy(update={"base_digest": trained_from}).model_dump(mode="json")
    stored = Metadata(sender="node-a", digest="d" * 64, size=168, meta=meta)
    metadata_path(path).write_text(stored.model_dump_json())
    item = Arrived(file, "node-a", path)
    if taken:
        assert received_update(item, servers).node == "node-a"
    else:
        with pytest.raises(BadInput, match="another model of this round"):
            received_update(item, servers)


def test_figures_are_only_of_clients_that_an_update_can_be_of(tmp_path: Path) -> None:
    share = NodeShare(node="node-a", first_client=2, num_clients=3, engine=EngineInfo(name="sequential"))
    plan = SimpleNamespace(number=1, shares=(share,))
    records = SimpleNamespace(base_digest=lambda _: None)
    arrivals = TaskArrivals(plan, records, None)  # type: ignore[arg-type] - what they are asked for here

    def kept(client: int | None) -> list[int]:
        figures = [{"client": one, "num_examples": 5, "loss": 1.0, "norm": 1.0} for one in (0, 2, 3, 4, 5, 3)]
        meta = {**update(base_round=3).model_dump(mode="json"), "client_figures": figures}
        path = tmp_path / "chunk-000000.npy"
        stored = Metadata(sender="node-a", digest="d" * 64, size=168, meta=meta)
        metadata_path(path).write_text(stored.model_dump_json())
        file = FileId(kind=Kind.LOCALPARAM, task="5" * 32, round=3, chunk=0, client=client)
        found = arrivals.read(Arrived(file, "node-a", path), accepts_updates_of=lambda _: True)
        assert isinstance(found, UpdateArrived)
        return [one.client for one in found.update.client_figures]

    assert kept(None) == [2, 3, 4]
    assert kept(3) == [3]
    with pytest.raises(ValidationError):
        ClientFigures(client=0, num_examples=5, loss=1.0, norm=-1.0)
