"""fedsim-fleet on the hosts of a deployed lab, also while one is dead."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml
from deployment import PROGRAMS, Deployment
from laboratory import HOSTS

NODES = [name for name in HOSTS if name.startswith("node")]


def fleet(deployment: Deployment, *arguments: str, code: int = 0) -> str:
    """What the command prints, called in the checkout; it must end with this code."""
    done = deployment.laboratory.control.run(
        str(PROGRAMS / "fedsim-fleet"), "--inventory", str(deployment.inventory), *arguments, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def followed() -> list[psutil.Process]:
    """Every journal that is being followed on a host."""
    asked = {"--output=json", "--follow"}
    return [one for one in psutil.process_iter(["cmdline"]) if asked <= set(one.info["cmdline"] or ())]


def test_the_table_shows_units_version_room_clock_and_certificate(deployment: Deployment) -> None:
    told = json.loads(fleet(deployment, "status", "--json"))["hosts"]
    assert [host["host"] for host in told] == list(HOSTS)
    for host in told:
        assert {unit["state"] for unit in host["units"]} == {"active"}
        assert host["version"] == deployment.version(host["host"])
        assert abs(host["skew_seconds"]) < 1
        assert 300 < host["certificate_days_left"] < 400
    lines = fleet(deployment, "status").splitlines()
    assert [line.split()[0] for line in lines] == ["host", *HOSTS]


def test_a_certificate_is_renewed_before_it_expires(deployment: Deployment) -> None:
    node, pki = deployment.laboratory["node-a"], "/etc/fedsim/pki/host"
    request = node.run("/opt/fedsim/current/bin/fedsim-ca", "request", "node-a", "--key", f"{pki}.key")
    node.run("install", "--mode=644", "/dev/stdin", f"{pki}.crt", text=deployment.sign(request, "node-a", days=20))
    assert "fedsim-fleet renew" in fleet(deployment, "doctor", code=1)
    left = dict(line.split(": ") for line in fleet(deployment, "renew").splitlines())
    assert left.pop("node-a") == "renewed, valid for 365 days"
    assert {name: days.split()[1:] for name, days in left.items()} == {name: ["days", "left"] for name in left}
    assert "no problems" in fleet(deployment, "doctor")
    deployment.completed(deployment.submit())


def test_the_doctor_finds_nothing_where_all_is_well_and_else_says_what_to_do(deployment: Deployment) -> None:
    assert "no problems" in fleet(deployment, "doctor")
    node, server = deployment.laboratory["node-a"], deployment.laboratory["server"]
    node.run("systemctl", "stop", "fedsim-client")
    node.run("sh", "-c", "mv /etc/fedsim/pki/crl.pem /etc/fedsim/pki/older.pem && touch /etc/fedsim/pki/crl.pem")
    server.run("sh", "-c", "echo 'nam: x' >> /etc/fedsim/web.yml")
    try:
        found = json.loads(fleet(deployment, "doctor", "--json", code=1))["findings"]
    finally:
        server.run("sed", "-i", "/^nam: x$/d", "/etc/fedsim/web.yml")
        node.run("mv", "/etc/fedsim/pki/older.pem", "/etc/fedsim/pki/crl.pem")
        node.run("systemctl", "start", "fedsim-client")
    problems = {(one["host"], one["problem"].split(";")[0]) for one in found}
    assert ("node-a", "fedsim-client is inactive (dead)") in problems
    assert ("node-a", "its certificate revocation list is out of date") in problems
    assert any(host == "server" and "/etc/fedsim/web.yml is not valid" in problem for host, problem in problems)
    assert all(one["remedy"] for one in found)


def test_the_journals_of_all_hosts_are_one_story(deployment: Deployment) -> None:
    number = deployment.submit()
    deployment.completed(number)
    story = [json.loads(line) for line in fleet(deployment, "logs", "--task", str(number), "--json").splitlines()]
    assert {entry["host"] for entry in story} >= {"server", "node-a", "node-b"}
    assert [entry["at"] for entry in story] == sorted(entry["at"] for entry in story)
    assert story[0]["text"].startswith("submitted")


def test_journals_are_followed_over_a_pulled_cable_until_ctrl_c_and_nothing_continues_there(
    deployment: Deployment,
) -> None:
    control, node = deployment.laboratory.control, deployment.laboratory["node-b"]
    options = ["--inventory", str(deployment.inventory), "--timeout", "8"]
    since = f"--since=@{int(time.time())}"
    # In the background of a script, where tests may run, ^C is ignored by all that is started there.
    command = ["env", "--default-signal=INT", str(PROGRAMS / "fedsim-fleet"), *options, "logs", "--follow", since]
    with subprocess.Popen(
        control.placed(*command, "--json"),
        env=control.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as follower:
        assert follower.stdout is not None
        assert follower.stderr is not None
        reloads = (entry for entry in map(json.loads, follower.stdout) if entry["text"].startswith("reloaded"))
        try:
            node.run("systemctl", "reload", "fedsim-client")
            first = next(reloads)
            deployment.laboratory.network.cut("node-b")
            assert any(b"node-b cannot be read, retrying" in line for line in follower.stderr)
            node.run("systemctl", "reload", "fedsim-client")
            deployment.laboratory.network.mend("node-b")
            again = next(reloads)
            assert len(followed()) >= 2 * len(HOSTS), "the shell and what it runs"
            follower.send_signal(signal.SIGINT)
            assert follower.wait(30) == 130
        finally:
            deployment.laboratory.network.mend("node-b")
            follower.kill()
    assert first["host"] == again["host"] == "node-b"
    assert again["at"] > first["at"]
    # What runs on hosts is seen from here as well.
    assert psutil.wait_procs(followed(), timeout=30)[1] == []
    assert followed() == []


def test_a_dead_host_delays_no_one_and_is_named(deployment: Deployment) -> None:
    deployment.laboratory.network.cut("node-b")
    try:
        told = json.loads(fleet(deployment, "--timeout", "8", "status", "--json", code=1))["hosts"]
        said = fleet(deployment, "--timeout", "8", "run", "hostname", code=69)
        assert fleet(deployment, "run", "hostname; hostname", "--host", "server").split() == ["server"] * 4
    finally:
        deployment.laboratory.network.mend("node-b")
    assert [host["host"] for host in told if not host["answers"]] == ["node-b"]
    assert sorted(line.split()[1] for line in said.splitlines()) == sorted(set(HOSTS) - {"node-b"})


def test_a_host_with_another_key_is_not_believed(deployment: Deployment) -> None:
    known = deployment.laboratory.control.ssh_config.with_name("known_hosts")
    before = known.read_text(encoding="utf-8")
    known.write_text(before.replace(HOSTS["node-a"], HOSTS["node-b"]), encoding="utf-8")
    try:
        (told,) = json.loads(fleet(deployment, "status", "--host", "node-a", "--json", code=1))["hosts"]
    finally:
        known.write_text(before, encoding="utf-8")
    assert "its key is not known" in told["problem"]


def test_hosts_restart_one_after_the_other_until_each_is_ready(deployment: Deployment) -> None:
    said = fleet(deployment, "restart")
    assert said.splitlines() == [f"{name}: ready" for name in HOSTS]
    assert "no problems" in fleet(deployment, "doctor")


@pytest.mark.parametrize("own", [pytest.param(False, marks=pytest.mark.long), True])
def test_data_comes_to_the_nodes_and_only_what_is_missing(deployment: Deployment, tmp_path: Path, own: bool) -> None:
    inventory = deployment.inventory
    before = inventory.read_text(encoding="utf-8")
    more = yaml.safe_load(before)
    datasets = more["all"]["children"]["fedsim_nodes"]["vars"]["fedsim_datasets"]
    datasets.append({"name": "credit", "path": "credit", "format": "csv", "label_column": "y", "access": "open"})
    inventory.write_text(yaml.safe_dump(more), encoding="utf-8")
    kept = "/var/lib/fedsim/client/data/credit"
    deployment.laboratory["node-a"].run("sh", "-c", f"mkdir -p {kept} && touch {kept}/older.csv")
    for name in NODES if own else [""]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "train.csv").write_text(f"x,y\n1,0\n2,{len(name)}\n", encoding="utf-8")
    try:
        first = fleet(deployment, "push-data", "credit", str(tmp_path))
        again = fleet(deployment, "push-data", "credit", str(tmp_path))
    finally:
        inventory.write_text(before, encoding="utf-8")
    assert first.splitlines() == [f"{name}: 1 file, 12 B, verified" for name in NODES]
    assert again.splitlines() == [f"{name}: is up to date" for name in NODES]
    for name in NODES:
        host, path = deployment.laboratory[name], f"{kept}/train.csv"
        assert host.run("ls", "-A", kept).split() == ["train.csv"]
        assert host.run("cat", path).endswith(f"2,{len(name) if own else 0}\n")
        assert host.run("stat", "--format=%U %G %a", path).strip() == "root fedsim 640"
        assert host.run("runuser", "--user", "fedsim", "--", "test", "-r", path) == ""
