"""From 0.1 to 0.2 on one machine: what 0.1 left in state-0.1/ is migrated, stays readable, and new tasks run on it.

It was left by two nodes and three finished tasks; tests/lab does the same on hosts, with upgrade.yml.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from platform_support import DIGITS, Platform

from fedsim.config import ClientConfig, ReceiverConfig, ServerConfig, WebConfig, load_config
from fedsim.errors import EX_CONFIG
from fedsim.migrations.command import migrate as fedsim_migrate
from fedsim.settings import parse_settings
from fedsim.store import Store
from fedsim.testing.local_cluster import NodeSpec
from fedsim.web.accounts import make_token

LEFT = Path(__file__).parent / "state-0.1"
PASSWORD = "correct horse battery"
HOSTS = ("server", "node-a", "node-b")


class Upgraded(Platform):
    """A platform whose database has its users already."""

    def connect(self, store: Store) -> None:
        self.store = store
        user = store.users.by_name("researcher")
        assert user is not None
        token, _ = make_token(store, user, "after the upgrade", now=time.time())
        self.api = httpx.Client(base_url=f"{self.url}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=30)


def restore(folder: Path) -> list[str]:
    """Put what 0.1 left into `folder`; returns the state directories."""
    for host in HOSTS:
        shutil.copytree(LEFT / host, folder / host)
        for kind in ("initparam", "testset", "globalparam", "localparam", "stop", "hello", "wanted", ".incoming"):
            (folder / host / kind).mkdir(exist_ok=True)
    with sqlite3.connect(folder / "fedsim.db") as database:
        database.executescript((LEFT / "fedsim.sql").read_text(encoding="utf-8"))
    database.close()
    return [str(folder / host) for host in HOSTS]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "data").mkdir()
    nodes = [
        NodeSpec(name, folder / "data", [DIGITS], {"clients": 50, "announce_seconds": 2})
        for name in HOSTS
        if name != "server"
    ]
    lab = Upgraded(folder, nodes, server={"node_timeout_seconds": 8})
    folders = restore(folder)
    for name in ("server", "node-a", "receiver"):  # before the migration
        ended = subprocess.run(lab.processes[name].command, capture_output=True, text=True, check=False, timeout=60)
        assert ended.returncode == EX_CONFIG, ended.stderr
        assert "fedsim-migrate" in ended.stderr + ended.stdout
    migrated = CliRunner().invoke(fedsim_migrate, folders)
    assert migrated.exit_code == 0, migrated.output
    with lab:
        yield lab


def test_tasks_of_0_1_are_shown_with_their_settings_metrics_and_rounds(lab: Upgraded) -> None:
    tasks = {task["number"]: task for task in lab.api.get("/tasks").json()["tasks"]}
    assert {number: task["state"] for number, task in tasks.items()} == dict.fromkeys((1, 2, 3), "completed")
    for number, changed in (
        (1, {"partition_options": {"alpha": 0.3}, "strategy_options": {"weighting": "examples", "mu": 0.05}}),
        (2, {"strategy_options": {"weighting": "uniform", "learning_rate": 1.0, "momentum": 0.7}}),
        (3, {"strategy_options": {}}),
    ):
        task = lab.api.get(f"/tasks/{number}").json()["task"]
        assert {name: task["settings"][name] for name in changed} == changed
        rounds = lab.api.get(f"/tasks/{number}/rounds").json()["rounds"]
        assert [item["round"] for item in rounds] == [0, 1, 2, 3]


def test_pages_show_a_task_of_0_1(lab: Upgraded) -> None:
    about = json.loads((LEFT / "server/checkpoints/task-1/round-0003.json").read_text())
    with httpx.Client(base_url=lab.url, follow_redirects=True, timeout=30) as browser:
        token = re.search(r'name="csrf" value="([^"]+)"', browser.get("/login").text)
        assert token is not None
        browser.post("/login", data={"csrf": token[1], "name": "researcher", "password": PASSWORD})
        page = browser.get("/tasks/1")
        assert page.status_code == 200
        assert "fedprox" in page.text
        assert f"{about['metrics']['accuracy']:.1%}"[:4] in page.text
        for path in ("/tasks", "/tasks/1/rounds.csv", "/tasks/1/rounds.json", "/nodes"):
            assert browser.get(path).status_code == 200


def test_checkpoints_of_0_1_are_offered_and_predict(lab: Upgraded, tmp_path: Path) -> None:
    saved = tmp_path / "downloaded.safetensors"
    answer = lab.api.get("/tasks/1/checkpoints/3")
    saved.write_bytes(answer.content)
    assert saved.read_bytes() == (LEFT / "server/checkpoints/task-1/round-0003.safetensors").read_bytes()
    metrics = json.loads((LEFT / "server/checkpoints/task-1/round-0003.json").read_text())["metrics"]
    for checkpoint in (saved, lab.node_spool("node-a") / "checkpoints" / "task-000001.safetensors"):
        arguments = ["--data", str(tmp_path), "--dataset-format", "digits", "--output", str(tmp_path / "out.csv")]
        program = str(Path(sys.executable).with_name("fedsim"))
        command = [program, "predict", "--checkpoint", str(checkpoint), *arguments, "--force", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["metrics"]["accuracy"] == pytest.approx(metrics["accuracy"])


def test_a_new_task_runs_and_what_left_is_logged_in_the_same_file(lab: Upgraded) -> None:
    before = (LEFT / "node-a" / "left.jsonl").read_text(encoding="utf-8")
    task = lab.completed(lab.submit(num_rounds=2))
    assert task.number == 4
    log = (lab.node_spool("node-a") / "audit.jsonl").read_text(encoding="utf-8")
    assert log.startswith(before)
    assert json.loads(log.splitlines()[-1])["task"] == 4


def test_a_finished_task_of_0_1_can_be_submitted_again(lab: Upgraded) -> None:
    settings = lab.task(2).settings.model_dump(mode="json")
    again = parse_settings(settings)[0].model_dump(mode="json")
    # What plug-ins have learnt since has its default.
    kept = {name: {**again[name], **value} if isinstance(value, dict) else value for name, value in settings.items()}
    assert kept == again


def test_settings_files_of_0_1_are_valid(tmp_path: Path) -> None:
    models = {"server": ServerConfig, "web": WebConfig, "receiver": ReceiverConfig}
    for path in sorted((LEFT / "etc").iterdir()):
        model = models.get("receiver" if "receiver" in path.stem else path.stem, ClientConfig)
        copy = tmp_path / path.name
        copy.write_text(path.read_text().replace("/FOLDER", str(tmp_path)))
        load_config(copy, model)
