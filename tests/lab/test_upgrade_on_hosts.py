"""From the last commit of 0.1 to this version, on hosts: upgrade.yml refuses during a task; old tasks stay readable.

It deploys to bare hosts, so it runs in a process of its own.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml
from commands import CommandError
from deployment import SOURCE, Deployment, gather
from image import CACHE
from laboratory import HOSTS, Laboratory
from presence import missing

from fedsim_fleet.releases import DEFAULT

pytestmark = pytest.mark.long
LAST_OF_0_1 = "82b5051"
LONG = {"num_rounds": 100, "evaluate_every": 100, "save_every": 100, "round_timeout_seconds": 3600}
# A page, as a browser sees it after its user has logged in.
PAGE = """
import httpx, re, sys
name, password, path = sys.argv[1:]
with httpx.Client(base_url="https://server", follow_redirects=True) as browser:
    token = re.search(r'name="csrf" value="([^"]+)"', browser.get("/login").text)[1]
    browser.post("/login", data={"csrf": token, "name": name, "password": password})
    answer = browser.get(path)
    assert answer.status_code == 200, answer.text
    print(answer.text)
"""


@pytest.fixture(scope="module")
def old_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the last commit of 0.1."""
    git = shutil.which("git") or missing("git is not installed")
    done = subprocess.run([git, "archive", LAST_OF_0_1], cwd=SOURCE, capture_output=True, check=False)
    if done.returncode != 0:
        missing(f"this checkout does not have the commit {LAST_OF_0_1}: git fetch --unshallow")
    folder = tmp_path_factory.mktemp("source-0.1")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def lab(laboratory: Laboratory, old_source: Path) -> Deployment:
    """A lab of 0.1, deployed and used with the playbooks and commands of 0.1."""
    packages = CACHE / "packages"
    new, old = gather(SOURCE, packages) / DEFAULT, CACHE / "packages-0.1"
    shutil.copytree(new, old, ignore=shutil.ignore_patterns("wheels*"), dirs_exist_ok=True)
    lab = Deployment.of(laboratory, old_source, gather(old_source, old))
    lab.play("site.yml")
    lab.log_in("ada", password(lab))
    return lab


def password(lab: Deployment) -> str:
    return (lab.secrets / "ada.password").read_text(encoding="utf-8").strip()


def page(lab: Deployment, path: str) -> str:
    return lab.https("python", "-c", PAGE, "ada", password(lab), path)


def test_an_upgrade_from_0_1(lab: Deployment, tmp_path: Path) -> None:
    finished = lab.completed(lab.submit(strategy="fedprox", proximal_mu=0.05, partition="dirichlet", alpha=0.4))
    number = int(finished["number"])
    before = lab.checkpoint(number, 3)
    running = lab.submit(**LONG)
    lab.reached(running, 5)
    # The task waits for this worker, and leaves the processors to the upgrade.
    lab.laboratory["node-b"].run("pkill", "--signal", "STOP", "--full", "fedsim.worker")
    old_version = lab.version("server")

    # 1. While a task runs it refuses, and the task continues.
    old = lab.source
    lab.source, lab.packages = SOURCE, CACHE / "packages"
    with pytest.raises(CommandError, match=rf"Task {running} is running, and fedsim .* cannot continue"):
        lab.play("upgrade.yml")
    assert {lab.version(name) for name in HOSTS} == {old_version}
    lab.source = old
    lab.laboratory["node-b"].run("pkill", "--signal", "CONT", "--full", "fedsim.worker")
    lab.completed(running)
    lab.source = SOURCE

    # 2. When none runs, it migrates every host. The data is public, which the inventory of 0.1 could not say.
    inventory = yaml.safe_load(lab.inventory.read_text(encoding="utf-8"))
    for dataset in inventory["all"]["children"]["fedsim_nodes"]["vars"]["fedsim_datasets"]:
        dataset["access"] = "open"
    lab.inventory.write_text(yaml.safe_dump(inventory), encoding="utf-8")
    lab.play("upgrade.yml")
    assert len({lab.version(name) for name in HOSTS} - {old_version}) == 1
    for name in HOSTS:
        folder = "/var/lib/fedsim/" + ("server" if name == "server" else "client")
        assert lab.laboratory[name].run("cat", f"{folder}/format").strip() == "2"
        assert lab.laboratory[name].run("systemctl", "--failed", "--no-legend") == ""
    log = lab.laboratory["node-a"].run("cat", "/var/lib/fedsim/client/audit.jsonl")
    assert f'"task": {number}' in log
    assert lab.changes("upgrade.yml") == 0

    # 3. The old task: page, metrics, checkpoint and its predictions.
    assert "fedprox" in page(lab, f"/tasks/{number}")
    assert lab.digest(number, 3) == before["digest"]
    assert lab.download(number) == 3
    saved = next(lab.laboratory.control.home.glob("*.safetensors"))
    arguments = ("--data", str(tmp_path), "--dataset-format", "digits", "--output", str(tmp_path / "predicted.csv"))
    metrics = lab.fedsim("predict", "--checkpoint", str(saved), *arguments)
    assert metrics["metrics"]["accuracy"] == pytest.approx(before["metrics"]["accuracy"])

    # 4. A new task.
    assert lab.completed(lab.submit())["round"] == 3
    settings = lab.task(number)["settings"]
    assert settings["strategy_options"]["mu"] == 0.05
    assert settings["partition_options"]["alpha"] == 0.4
