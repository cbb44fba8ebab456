"""Daemons at their edges: restarts at awkward moments, reloads, nodes that go away, files that come too late."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from platform_support import LONG, Platform, digits_lab, small_settings, undisturbed

from fedsim.config import DataSetConfig
from fedsim.errors import Refused
from fedsim.messages import Assignment, EngineInfo, ModelSpec, Uplink
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.npy import write_vector
from fedsim.spool.sealed import read_sealed, write_sealed
from fedsim.wire import Identity, Peer, Sender
from fedsim.worker import jobs
from fedsim.worker.main_loop import Worker


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with digits_lab(tmp_path_factory.mktemp("daemons")) as lab:
        yield lab


@pytest.fixture(autouse=True)
def everybody_comes_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test's end leaves the next one without a daemon."""
    yield
    if "lab" in request.fixturenames:
        lab: Platform = request.getfixturevalue("lab")
        lab.start(*(name for name, process in lab.processes.items() if process.popen is None))


def change(lab: Platform, process: str, **keys: Any) -> None:
    """Change keys of a daemon's YAML; None takes one out."""
    path = lab.config(process)
    content = {**yaml.safe_load(path.read_text()), **keys}
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))


def reload(lab: Platform, process: str) -> None:
    os.kill(lab.processes[process].pid, signal.SIGHUP)


def log_of(lab: Platform, process: str) -> str:
    return lab.processes[process].log.read_text()


# ---------------------------------------------------------------- restarts


def test_a_restarted_server_stops_nothing_that_still_runs(lab: Platform) -> None:
    number = lab.submit(**LONG)
    lab.await_round(number, 2)
    before = {node: log_of(lab, node).count("task_stopped") for node in ("node-a", "node-b")}
    lab.kill("server")
    lab.start("server")
    lab.completed(number)
    assert {node: log_of(lab, node).count("task_stopped") for node in before} == before


def test_a_crash_between_the_counts_and_the_row_does_not_hide_that_the_task_runs(lab: Platform) -> None:
    number = lab.submit(**LONG)
    lab.await_round(number, 2)
    lab.kill("server")
    with sqlite3.connect(lab.folder / "fedsim.db") as connection:
        connection.execute("UPDATE tasks SET state = 'starting' WHERE number = ?", (number,))
    connection.close()
    lab.start("server")
    assert lab.completed(number).digest is not None


def test_a_round_that_a_restart_takes_up_from_its_roster_is_recorded_as_it_was(lab: Platform) -> None:
    number = lab.submit(**LONG)
    lab.await_round(number, 2)
    for worker in lab.workers("server"):
        worker.suspend()  # nothing is aggregated any more: the next roster stays
    folder = lab.server_spool / "globalparam" / lab.task(number).uid
    path = lab.await_row(lambda: next(folder.glob("roster-*.json"), None), what="for a roster")
    lab.kill("server")
    roster = read_sealed(path)
    lab.start("server")
    lab.completed(number)
    record = next(record for record in lab.store.rounds.of_task(number) if record.round == roster["round"])
    assert record.bytes_received == roster["gathered"]["bytes_received"] > 100_000
    assert record.bytes_sent >= roster["gathered"]["bytes_sent"] > 100_000
    assert record.seconds["train"] == roster["gathered"]["seconds"] < record.seconds["all"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda plan: {
                **plan,
                "settings": {**plan["settings"], "model": "gone"},
                "model_spec": {**plan["model_spec"], "name": "gone"},
            },
            "unknown model 'gone'",
        ),
        (
            lambda plan: {**plan, "shares": [*plan["shares"], {**plan["shares"][0], "node": "node-x"}]},
            "node-x took part",
        ),
    ],
    ids=["model_uninstalled", "node_not_configured"],
)
def test_a_task_that_cannot_be_resumed_fails_alone(lab: Platform, spoil: Any, told: str) -> None:
    number = lab.submit(**LONG)
    lab.await_round(number, 1)
    lab.kill("server")
    path = lab.server_spool / "globalparam" / lab.task(number).uid / "plan.json"
    write_sealed(path, spoil(read_sealed(path)))
    lab.start("server")
    task = lab.finish(number)
    assert task.state == "failed"
    assert told in task.reason
    lab.completed(lab.submit(num_rounds=1))


@pytest.mark.parametrize(("host", "folder"), [("server", "globalparam"), ("node-a", "localparam")])
def test_a_task_whose_file_is_damaged_fails_alone_and_names_it(lab: Platform, host: str, folder: str) -> None:
    number = lab.submit(**LONG)
    lab.await_round(number, 1)
    lab.kill(host)
    spool = lab.server_spool if host == "server" else lab.node_spool(host)
    (spool / folder / lab.task(number).uid / "versions.json").write_text("damaged")
    lab.start(host)
    task = lab.finish(number)
    assert task.state == "failed"
    assert "versions.json is damaged" in task.reason
    lab.completed(lab.submit(num_rounds=1))


def test_what_was_not_asked_for_gets_nowhere_while_a_task_runs(lab: Platform, tmp_path: Path) -> None:
    number = lab.submit(num_rounds=1000)
    uid = lab.await_round(number, 1).uid
    wanted = json.loads((lab.server_spool / "wanted" / f"{uid}.json").read_text())["senders"]
    assert wanted["localparam"] == ["node-a", "node-b"]
    (asked,) = wanted["testset"]
    (other,) = {"node-a", "node-b"} - {asked}
    np.save(tmp_path / "d.npy", np.zeros((5, 8, 8), np.float32))
    receiver = Peer("server", "127.0.0.1", yaml.safe_load(lab.config("receiver").read_text())["listen"]["port"])
    file = FileId(kind=Kind.TESTSET, task=uid, part="data")
    with Sender(Identity(other, Role.CLIENT)) as sender, pytest.raises(Refused, match="was not asked") as refused:
        sender.send_and_wait(receiver, file, tmp_path / "d.npy", give_up_after=60)
    assert refused.value.code == "not_wanted"
    lab.api.post(f"/tasks/{number}/stop")
    lab.finish(number)
    for spool in (lab.server_spool, lab.node_spool("node-a"), lab.node_spool("node-b")):
        lab.await_gone(spool / "wanted", f"{uid}.json")


def test_a_stop_that_came_while_the_node_was_down_is_heeded_at_its_start(lab: Platform) -> None:
    number = lab.submit(num_rounds=1000)
    lab.await_round(number, 1)
    lab.kill("node-a")
    lab.api.post(f"/tasks/{number}/stop")
    uid = lab.finish(number).uid
    spool = lab.node_spool("node-a")
    lab.await_file(spool / "stop" / f"{uid}.json")
    lab.start("node-a")
    lab.await_gone(spool / "initparam", f"{uid}.json")
    lab.await_gone(spool / "globalparam", uid)
    lab.completed(lab.submit(num_rounds=1))


# ---------------------------------------------------------------- nodes that go away


def test_a_node_away_at_the_end_gets_the_final_model_also_from_a_restarted_server(lab: Platform) -> None:
    number = lab.submit(**LONG, min_responses=0.3, round_timeout_seconds=1)
    lab.await_round(number, 2)
    lab.kill("node-b")
    lab.kill("node-b-receiver")
    task = lab.completed(number)
    assert task.reason == "5 rounds done; the final model still goes to node-b"
    kept = lab.server_spool / "final" / task.uid
    assert {path.name for path in kept.iterdir()} == {"model.npy", "delivery.json"}
    lab.await_gone(lab.server_spool / "globalparam", task.uid)
    lab.kill("server")
    lab.start("server", "node-b-receiver", "node-b")
    models = [lab.node_spool(node) / "checkpoints" / f"task-{number:06d}.safetensors" for node in ("node-a", "node-b")]
    lab.await_file(models[1], seconds=60)
    assert models[0].read_bytes() == models[1].read_bytes()
    lab.await_gone(lab.node_spool("node-b") / "initparam", f"{task.uid}.json")
    lab.await_gone(kept.parent, task.uid)


def test_deleting_a_task_ends_the_wait_for_a_node_that_never_comes_back(lab: Platform) -> None:
    number = lab.submit(**LONG | {"num_rounds": 3}, min_responses=0.3, round_timeout_seconds=1)
    lab.await_round(number, 1)
    lab.kill("node-b")
    lab.kill("node-b-receiver")
    uid = lab.completed(number).uid
    assert (lab.server_spool / "final" / uid).is_dir()
    lab.api.delete(f"/tasks/{number}")
    lab.await_row(lambda: lab.store.tasks.get(number) is None or None)
    lab.await_gone(lab.server_spool / "final", uid)
    lab.start("node-b-receiver", "node-b")
    # What it still holds of the task is not wanted any more.
    lab.await_gone(lab.node_spool("node-b") / "initparam", f"{uid}.json")


def test_a_deadline_that_passed_in_vain_costs_no_processor(lab: Platform) -> None:
    number = lab.submit(**LONG, round_timeout_seconds=1)
    lab.await_round(number, 2)
    lab.kill("node-b")
    lab.await_row(lambda: lab.task(number).waiting_for == ("node-b",) or None)
    server = psutil.Process(lab.processes["server"].pid)
    lab.await_row(lambda: lab.task(number).waiting_until is None or None, what="for the deadline to pass")
    before = sum(server.cpu_times()[:2])
    # Two announcements of node-a, that is, a few seconds.
    at = next(node.seen_at for node in lab.store.nodes.all() if node.name == "node-a")
    lab.await_row(lambda: max(node.seen_at for node in lab.store.nodes.all()) > at + 3 or None)
    assert sum(server.cpu_times()[:2]) - before < 1
    lab.start("node-b")
    lab.completed(number)


# ---------------------------------------------------------------- slips in the configuration of others


def test_a_node_that_turns_the_server_away_is_named_with_the_reason_and_continues_when_it_is_set_right(
    lab: Platform,
) -> None:
    number = lab.submit(**LONG)
    lab.await_round(number, 2)
    lab.stop("node-b-receiver")
    change(lab, "node-b-receiver", peers=[{"name": "another", "role": "server"}])
    lab.start("node-b-receiver")

    def told() -> bool | None:
        why = ("node-b (127.0.0.1:", "the connection was refused: server server is not a peer of node-b")
        return any(all(part in waiting for part in why) for waiting in lab.task(number).waiting_for) or None

    lab.await_row(told, what="for the trouble to be shown")
    assert log_of(lab, "server").count("is not a peer of node-b") == 1, "it is logged once"
    change(lab, "node-b-receiver", peers=[{"name": "server", "role": "server"}])
    reload(lab, "node-b-receiver")
    assert lab.completed(number).digest == undisturbed(**LONG)


def test_an_announcement_that_is_refused_is_reported_once_and_when_it_is_taken_again(lab: Platform) -> None:
    change(lab, "receiver", limits={"max_json_bytes": 10})
    reload(lab, "receiver")
    lab.await_row(lambda: log_of(lab, "receiver").count("too_large") > 4 or None, what="for several announcements")
    assert log_of(lab, "node-a").count("hello_refused") == 1
    change(lab, "receiver", limits=None)
    reload(lab, "receiver")
    lab.await_log("node-a", "hello_accepted")


# ---------------------------------------------------------------- what comes too late, or unasked


def test_an_update_for_a_task_that_is_over_does_not_stay(lab: Platform) -> None:
    uid = lab.completed(lab.submit(num_rounds=1)).uid
    folder = lab.server_spool / "localparam" / uid / "round-000001"
    folder.mkdir(parents=True)
    with suppress(FileNotFoundError):  # the server may remove the folder before the update is in it
        write_vector(folder / "node-a.chunk-000000.npy", np.zeros(3, np.float32))
    lab.await_gone(lab.server_spool / "localparam", uid)


# ---------------------------------------------------------------- reloads


def test_what_a_node_offers_changes_with_a_reload(lab: Platform) -> None:
    change(lab, "node-a", clients=33, institution={"models": ["logistic"]}, name="other")
    reload(lab, "node-a")

    def offered() -> tuple[int, list[str]] | None:
        for node in lab.store.nodes.all():
            if node.name == "node-a":
                return node.hello["clients"], [model["name"] for model in node.hello["plugins"]["models"]]
        return None  # it has not announced itself yet

    lab.await_row(lambda: offered() == (33, ["logistic"]) or None)
    assert "restart_needed" in log_of(lab, "node-a"), "its name is not changed by a reload, and it says so"
    change(lab, "node-a", clients=50, institution=None, name="node-a")
    reload(lab, "node-a")
    lab.await_row(lambda: (offered() or (0,))[0] == 50 or None)


def test_after_a_reload_two_tasks_run_at_once_on_the_same_nodes_with_the_same_bytes(lab: Platform) -> None:
    change(lab, "server", max_running_tasks=2)
    reload(lab, "server")
    first, second = lab.submit(**LONG), lab.submit(**LONG)
    lab.await_row(lambda: {lab.task(number).state for number in (first, second)} == {"running"} or None)
    assert lab.completed(first).digest == lab.completed(second).digest == undisturbed(**LONG)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_removed_node_is_notified_that_its_task_is_over(lab: Platform, *, restarts: bool) -> None:
    number = lab.submit(num_rounds=1000)
    lab.await_round(number, 1)
    nodes = yaml.safe_load(lab.config("server").read_text())["nodes"]
    lab.stop("node-b-receiver")  # it can be told only later
    change(lab, "server", nodes=nodes[:1])
    if restarts:
        lab.stop("server")
        lab.start("server")
    else:
        reload(lab, "server")
    task = lab.finish(number)
    assert task.reason == "node-b took part, but server.yml does not name it any more"
    lab.await_row(lambda: [node.name for node in lab.store.nodes.all()] == ["node-a"])
    lab.kill("server")
    lab.start("server", "node-b-receiver")
    spool = lab.node_spool("node-b")
    lab.await_gone(spool / "initparam", f"{task.uid}.json")
    lab.await_gone(spool / "globalparam", task.uid)
    lab.await_log("server", "removed_node_notified")
    change(lab, "server", nodes=nodes)
    reload(lab, "server")
    lab.completed(lab.submit(num_rounds=1))


# ---------------------------------------------------------------- workers


def test_a_model_that_is_about_to_diverge_can_still_be_tested(tmp_path: Path) -> None:
    settings = small_settings(model="2nn")
    model = {"settings": settings, "model_spec": ModelSpec.of(settings, (8, 8), 10)}
    worker = Worker(threads=1)
    worker.do(jobs.MakeInitialModel(**model, out=tmp_path))
    size = np.load(tmp_path / "model.npy").size
    write_vector(tmp_path / "model.npy", np.full(size, 1e30, np.float32))
    digits = jobs.TestSetFiles(
        dataset=DataSetConfig(name="digits", path=Path("digits"), format="digits"), folder=tmp_path
    )
    reply = worker.do(jobs.Evaluate(**model, round=1, model=tmp_path / "model.npy", testset=digits))
    assert isinstance(reply, jobs.Tested)
    assert reply.metrics["loss"] is None
    assert jobs.read_reply(jobs.encode_reply(reply)) == reply, "the daemon understands it"


def test_data_that_changed_after_it_was_announced_is_not_trained_on(tmp_path: Path) -> None:
    assignment = Assignment(
        task="0" * 32,
        number=1,
        settings=small_settings(),
        dataset_digest="0" * 64,
        first_client=0,
        num_clients=20,
        model_spec=ModelSpec.of(small_settings(), (8, 8), 10),
        engine=EngineInfo(),
        uplink=Uplink.SUM,
    )
    digits = DataSetConfig(name="digits", path=Path("digits"), format="digits")
    reply = Worker(threads=1).do(jobs.Load(assignment=assignment, dataset=digits, folder=tmp_path, min_examples=1))
    assert isinstance(reply, jobs.JobFailed)
    assert "changed since" in reply.reason
