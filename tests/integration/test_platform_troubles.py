"""What a lab meets: nodes that die or are not there yet, rules that forbid, databases that go away."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from database_support import MariaDb
from platform_support import DIGITS, LONG, Platform, digits_lab, small_settings, undisturbed
from sklearn.datasets import load_digits

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.errors import EX_UNAVAILABLE
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate
from fedsim.store import open_store
from fedsim.testing.local_cluster import LocalCluster, NodeSpec


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with digits_lab(tmp_path_factory.mktemp("troubles")) as lab:
        yield lab


def test_a_round_continues_without_a_dead_node_once_its_deadline_has_passed(lab: Platform) -> None:
    number = lab.submit(**LONG | {"num_rounds": 3}, min_responses=0.3, round_timeout_seconds=8)
    lab.await_round(number, 1)
    lab.kill("node-b")
    task = lab.completed(number)
    lab.start("node-b")
    records = lab.store.rounds.of_task(number)
    assert any(record.missing for record in records), "somebody was missing"
    assert all(client >= 10 for record in records for client in record.missing), "node-b holds the clients 10 to 19"
    lost = {record.round: record.missing for record in records if record.missing}
    counts = task.participation
    assert (counts["node-a"]["missing"], counts["node-a"]["rounds_missing"]) == (0, 0)
    assert counts["node-b"]["missing"] == sum(map(len, lost.values()))
    assert counts["node-b"]["rounds_missing"] == len(lost)
    assert sum(node["expected"] for node in counts.values()) == 3 * 10
    known = lab.api.get(f"/tasks/{number}/participation").json()
    assert known["missing"] == {str(at): list(clients) for at, clients in lost.items()}
    # With the record that the checkpoint carries, one process gives the same bytes.
    checkpoint = lab.server_spool / "checkpoints" / f"task-{number}" / "round-0003.json"
    missing = json.loads(checkpoint.read_text())["missing"]
    make_deterministic(1)
    dataset = load_dataset(DataSetConfig.model_validate(DIGITS), lab.folder)
    settings = small_settings(**LONG | {"num_rounds": 3})
    alone = simulate(settings, dataset, chunk_clients=5, placement=[(0, 10), (10, 10)], missing=missing)
    assert alone.digest == task.digest
    # It comes back, finds the final model in its spool, keeps it and forgets the task.
    lab.await_gone(lab.node_spool("node-b") / "initparam", f"{task.uid}.json")
    assert (lab.node_spool("node-b") / "checkpoints" / f"task-{number:06d}.safetensors").is_file()


def test_a_round_that_needs_all_nodes_says_for_whom_it_waits_and_continues_when_they_are_back(lab: Platform) -> None:
    number = lab.submit(**LONG, round_timeout_seconds=3)
    lab.await_round(number, 2)
    lab.kill("node-b")
    lab.await_row(lambda: lab.task(number).waiting_for == ("node-b",) or None, what="for the row to name node-b")
    lab.start("node-b")
    assert lab.completed(number).digest == undisturbed(**LONG)


@pytest.mark.long
def test_a_task_that_failed_by_a_nodes_fault_is_resumed_after_the_repair_with_the_same_bytes(lab: Platform) -> None:
    number = lab.submit(**LONG)
    lab.await_round(number, 2)
    lab.kill("node-b")
    config = lab.config("node-b").read_text()
    broken = {**yaml.safe_load(config), "institution": {"models": ["logistic"]}}
    lab.config("node-b").write_text(yaml.safe_dump(broken))
    lab.start("node-b")
    failed = lab.finish(number)
    assert (failed.state, "allows the models logistic" in failed.reason) == ("failed", True), failed.reason
    assert failed.resume_round is not None
    assert failed.resume_round >= 1
    lab.stop("node-b")
    lab.await_offline("node-b")
    assert lab.api.post(f"/tasks/{number}/resume").status_code == 202
    lab.await_row(lambda: any("must be online" in why for why in lab.task(number).waiting_for) or None)
    lab.config("node-b").write_text(config)
    lab.start("node-b")
    assert lab.completed(number).digest == undisturbed(**LONG)


def test_with_no_node_online_the_task_waits_and_says_so(lab: Platform) -> None:
    lab.stop("node-a", "node-b")
    lab.await_offline("node-a", "node-b")
    number = lab.submit(num_rounds=1)
    lab.await_row(lambda: any("online" in text for text in lab.task(number).waiting_for) or None)
    lab.start("node-a", "node-b")
    lab.completed(number)


def test_a_waiting_task_can_be_stopped(lab: Platform) -> None:
    number = lab.submit(num_nodes=3)
    lab.await_row(lambda: lab.task(number).waiting_for or None)
    following = lab.submit(num_rounds=1)
    lab.completed(following)
    assert lab.api.post(f"/tasks/{number}/stop").status_code == 202
    assert lab.finish(number).state == "stopped"


def test_a_port_in_use_ends_the_receiver_and_the_web_with_69_and_its_name(lab: Platform, tmp_path: Path) -> None:
    for name, program in (("receiver", "receiver"), ("web", "web")):
        port = yaml.safe_load(lab.config(name).read_text())["listen"]["port"]
        command = [*lab.processes[name].command]
        if program == "receiver":  # on a spool of its own: the port is what is in use
            content = {**yaml.safe_load(lab.config(name).read_text()), "spool": str(tmp_path / "spool")}
            command[-1] = str(tmp_path / "receiver.yml")
            Path(command[-1]).write_text(yaml.safe_dump(content))
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == EX_UNAVAILABLE, run.stderr
        assert str(port) in run.stderr
        assert "in use" in run.stderr or "another program has it" in run.stderr


def test_garbage_on_the_receivers_port_disturbs_no_one(lab: Platform) -> None:
    port = yaml.safe_load(lab.config("receiver").read_text())["listen"]["port"]
    number = lab.submit(num_rounds=2)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
    lab.completed(number)


def test_what_the_institution_forbids_is_refused_with_its_reason(tmp_path: Path) -> None:
    rules = {"institution": {"models": ["logistic"], "min_examples": 1000}}
    with digits_lab(tmp_path, nodes=1, client=rules) as lab:
        number = lab.submit(num_nodes=1, model="2nn")
        lab.await_row(
            lambda: any("does not offer the model 2nn" in why for why in lab.task(number).waiting_for) or None
        )
        lab.api.post(f"/tasks/{number}/stop")
        task = lab.finish(lab.submit(num_nodes=1, model="logistic"))
        assert task.state == "failed"
        assert "fewer than 1000 examples" in task.reason
        (accepted,) = (lab.node_spool("node-a") / "audit.jsonl").read_text(encoding="utf-8").splitlines()
        assert '"kind": "task"' in accepted, "nothing has left the house"


def test_a_test_set_that_may_not_leave_stays_and_the_task_says_what_to_do(tmp_path: Path) -> None:
    secret = {"datasets": [{"name": "digits", "path": "digits", "format": "digits", "share": False, "access": "open"}]}
    with digits_lab(tmp_path, nodes=1, client=secret) as lab:
        task = lab.finish(lab.submit(num_nodes=1))
        assert task.state == "failed"
        assert "share: true" in task.reason


def test_the_servers_own_test_set_serves_where_no_node_shares_one(tmp_path: Path) -> None:
    secret = {"datasets": [{"name": "digits", "path": "digits", "format": "digits", "share": False, "access": "open"}]}
    own = {
        "data": str(tmp_path),
        "datasets": [{"name": "digits", "path": "digits", "format": "digits"}],
        "node_timeout_seconds": 8,
    }
    with digits_lab(tmp_path, nodes=1, client=secret, server=own) as lab:
        assert lab.completed(lab.submit(num_nodes=1, num_rounds=2)).metrics["accuracy"] is not None
        left = (lab.node_spool("node-a") / "audit.jsonl").read_text()
        assert "testset" not in left


def test_a_data_set_of_the_servers_own_that_is_broken_is_waited_for_until_it_is_repaired(tmp_path: Path) -> None:
    images, labels = load_digits(return_X_y=True)
    arrays = {"x_train": (images / 16).astype(np.float32), "y_train": labels, "x_test": (images / 16), "y_test": labels}
    for name in ("own", "nodes"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "digits.npz", **arrays)
    whole = (tmp_path / "own" / "digits.npz").read_bytes()
    (tmp_path / "own" / "digits.npz").write_bytes(whole[:1000])
    digits = [{"name": "digits", "path": "digits.npz"}]
    node = NodeSpec("node-a", tmp_path / "nodes", digits, {"clients": 50, "announce_seconds": 2})
    own = {"data": str(tmp_path / "own"), "datasets": digits, "node_timeout_seconds": 8}
    with Platform(tmp_path / "lab", [node], server=own) as lab:
        number = lab.submit(num_nodes=1, num_rounds=1)
        why = "the server's own data set digits cannot be used: "
        lab.await_row(lambda: any(why in text for text in lab.task(number).waiting_for) or None)
        assert "not a complete .npz file" in lab.task(number).waiting_for[0]
        (tmp_path / "own" / "digits.npz").write_bytes(whole)
        assert lab.completed(number).metrics["accuracy"] is not None


@pytest.mark.mariadb
def test_a_database_that_goes_away_in_the_middle_of_a_task_is_waited_for(mariadb: MariaDb, tmp_path: Path) -> None:
    name = mariadb.new_database()
    database = {"database": mariadb.url(name), "database_password_file": str(mariadb.password_file)}
    # The lab is there before its database: daemons wait and say so.
    mariadb.kill()
    lab = digits_lab(tmp_path, server={**database, "node_timeout_seconds": 8}, web=database)
    try:
        LocalCluster.start(lab, "receiver", "node-a", "node-a-receiver", "node-b", "node-b-receiver")
        lab.launch("server")
        lab.await_log("server", "waiting_for_database")
        mariadb.start()
        lab.await_log("server", "ready")
        lab.start("web")
        lab.connect(open_store(mariadb.url(name), mariadb.password_file))
        number = lab.submit(**LONG)
        lab.await_round(number, 2)
        mariadb.kill()
        lab.await_log("server", "database_lost")
        mariadb.start()
        assert lab.completed(number).digest == undisturbed(**LONG)
    finally:
        lab.__exit__()
        if mariadb.process is not None and mariadb.process.poll() is not None:
            mariadb.start()
