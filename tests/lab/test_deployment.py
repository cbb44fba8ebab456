"""What a lab's owner does, from bare hosts to bare hosts: the tests run in this order, on one lab."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from commands import CommandError
from deployment import SOURCE, Deployment, gather
from image import SUDOER
from laboratory import HOSTS

from fedsim_fleet.releases import DEFAULT

NODES = [name for name in HOSTS if name.startswith("node")]
NEXT_VERSION = "99.0.0"
SERVICES = {
    "server": ["fedsim-receiver", "fedsim-server", "fedsim-web"],
    **{name: ["fedsim-receiver", "fedsim-client"] for name in NODES},
}
MAX_TASKS = 25  # of a run with nothing to do, on each host
LONG = {"num_rounds": 150, "evaluate_every": 150, "save_every": 150}
PASSWORD = "a sentence that nobody guesses"
# Registering is for people at a browser: the page's form with its token.
REGISTER = """
import httpx, re, sys
with httpx.Client(base_url="https://server") as browser:
    token = re.search(r'name="csrf" value="([^"]+)"', browser.get("/register").text)[1]
    answer = browser.post("/register", data={"csrf": token, "name": "grace", "password": sys.argv[1]})
    assert answer.status_code < 400, answer.text
"""

# Whether a TCP port can be connected to.
REACHES = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()
    print(True)
except OSError:
    print(False)
"""

# What an institution writes for a second node on one of its hosts.
TLS = {
    "certificate": "/etc/fedsim/second/pki/host.crt",
    "key": "tls.key",
    "authority": "/etc/fedsim/pki/ca.crt",
    "revoked": "/etc/fedsim/pki/crl.pem",
}
SECOND = {
    "/etc/fedsim/second/client.yml": yaml.safe_dump(
        {
            "name": "hospital",
            "server": {"address": HOSTS["server"], "port": 9001},
            "spool": "/var/lib/fedsim/second/client",
            "data": "/var/lib/fedsim/second/client/data",
            "datasets": [{"name": "digits", "path": "digits", "format": "digits", "access": "open"}],
            "tls": TLS,
        }
    ),
    "/etc/fedsim/second/receiver.yml": yaml.safe_dump(
        {
            "name": "hospital",
            "role": "client",
            "listen": {"address": HOSTS["node-a"], "port": 9012},
            "spool": "/var/lib/fedsim/second/client",
            "peers": [{"name": "server", "role": "server"}],
            "tls": TLS,
        }
    ),
    "/etc/systemd/system/fedsim-receiver@second.socket.d/listen.conf": (
        f"[Socket]\nListenStream=\nListenStream={HOSTS['node-a']}:9012\n"
    ),
}


@pytest.fixture(scope="module")
def next_version(deployment: Deployment) -> Path:
    """The same source under another version's number, gathered."""
    folder = deployment.laboratory.folder / "next"
    source, packages = folder / "source", folder / "packages"
    ignored = shutil.ignore_patterns(".*", "packages", "build", "tests", "__pycache__", "*.egg-info")
    shutil.copytree(SOURCE, source, ignore=ignored)
    module = source / "daemons" / "fedsim" / "__init__.py"
    text = re.sub(r'__version__ = ".*"', f'__version__ = "{NEXT_VERSION}"', module.read_text(encoding="utf-8"))
    module.write_text(text, encoding="utf-8")
    known = deployment.packages / DEFAULT
    shutil.copytree(known, packages / DEFAULT, ignore=shutil.ignore_patterns("wheels-*"))
    return gather(source, packages)


@pytest.fixture(scope="module")
def digests() -> set[str]:
    """Those of the models that equal tasks ended with: whatever disturbs a task, there is one."""
    return set()


def test_bare_hosts_become_a_lab_in_which_every_unit_works_under_its_hardening(deployment: Deployment) -> None:
    for name, services in SERVICES.items():
        host = deployment.laboratory[name]
        assert host.run("systemctl", "is-active", *services, "fedsim.target").split() == ["active"] * (
            len(services) + 1
        )
        assert host.run("systemctl", "--failed", "--no-legend") == ""
        for unit in services:
            assert host.journal("--priority=warning", "--unit", unit) == ""
    assert {node["name"] for node in deployment.fedsim("nodes")["nodes"] if node["online"]} == set(NODES)
    assert "0077" in deployment.ansible("ansible", "node-b", "--module-name", "shell", "--args", "umask")


def test_a_second_run_changes_nothing_in_few_tasks(deployment: Deployment) -> None:
    counted = deployment.play("site.yml")
    assert {name: counted[name]["changed"] for name in HOSTS} == dict.fromkeys(HOSTS, 0)
    assert max(counted[name]["ok"] for name in HOSTS) <= MAX_TASKS


def test_the_server_backs_up_by_a_timer(deployment: Deployment) -> None:
    server = deployment.laboratory["server"]
    assert server.run("systemctl", "is-active", "fedsim_backup.timer").strip() == "active"
    server.run("systemctl", "start", "fedsim_backup.service")
    (made,) = server.run("ls", "/var/backups/fedsim").split()
    listed = server.run("tar", "--list", "--file", f"/var/backups/fedsim/{made}").split()
    assert {"./database.sql", "./SHA256SUMS"} <= set(listed)


def test_users_whom_the_inventory_names_decide_about_a_nodes_tasks(deployment: Deployment) -> None:
    node = deployment.laboratory["node-a"]
    assert node.run("stat", "--format=%U %G %a", "/run/fedsim-owner").split() == ["fedsim", "fedsim-owner", "2750"]
    socket = "/run/fedsim-owner/client.sock"
    assert node.run("stat", "--format=%U %G %a", socket).split() == ["fedsim", "fedsim-owner", "660"]
    pending = ("runuser", "--user", SUDOER, "--", "/opt/fedsim/current/bin/fedsim-client", "pending")
    with pytest.raises(CommandError, match="they must be in the group that owns it"):
        node.run(*pending)
    assert deployment.play("site.yml", "node-a", fedsim_owners=[SUDOER])["node-a"]["changed"] == 1
    assert "No task waits for approval" in node.run(*pending)
    deployment.play("site.yml", "node-a", fedsim_owners=[])
    with pytest.raises(CommandError, match="they must be in the group that owns it"):
        node.run(*pending)


def test_only_ssh_the_web_and_peers_reach_a_host(deployment: Deployment) -> None:
    server, node = deployment.laboratory["server"], deployment.laboratory["node-a"]
    for host, closed in ((server, (9001, 3306)), (node, (9002,))):
        assert deployment.reaches(host.address, 22)
        assert [port for port in closed if deployment.reaches(host.address, port)] == [], host.name
        host.run("nft", "add table inet other; add chain inet other c { type filter hook input priority 5; }")
    assert all(deployment.reaches(server.address, port) for port in (80, 443))
    assert node.run("python3", "-c", REACHES, HOSTS["server"], "9001").strip() == "True"
    rule = "tcp dport 7777 accept"
    deployment.play("site.yml", "server", fedsim_firewall_rules=[rule])
    assert rule in server.run("nft", "list", "table", "inet", "fedsim")
    server.run("systemctl", "stop", "fedsim_firewall")
    assert server.run("nft", "list", "tables").split() == ["table", "inet", "other"]
    assert deployment.changes("site.yml", "server")  # it is there again, without the rule
    rules = server.run("nft", "list", "ruleset")
    assert "table inet other" in rules
    assert "table inet fedsim" in rules
    assert rule not in rules


def test_a_host_that_is_not_ready_is_named_with_what_to_do(deployment: Deployment) -> None:
    with pytest.raises(CommandError, match=r"node-b is not ready:\s+- its clock differs by .* s: set it, for example"):
        deployment.play("site.yml", "node-b", preflight_clock_seconds=-1)


def test_a_user_registers_is_approved_and_trains_through_https(deployment: Deployment) -> None:
    deployment.https("python", "-c", REGISTER, PASSWORD)
    deployment.laboratory["server"].run(
        "env", "FEDSIM_CREDENTIALS=/etc/fedsim/secrets", "/opt/fedsim/current/bin/fedsim", "admin", "enable", "grace"
    )
    deployment.log_in("grace", PASSWORD)
    number = deployment.submit()
    assert deployment.completed(number)["round"] == 3
    assert deployment.download(number) == 3
    server = deployment.laboratory["server"].journal(f"FEDSIM_TASK={number}")
    for event in ("submitted", "task_started", "round_committed", "checkpoint_saved", "task_finished"):
        assert event in server
    for name in NODES:
        deployment.laboratory[name].await_journal("task_ended", f"FEDSIM_TASK={number}")
        story = deployment.laboratory[name].journal(f"FEDSIM_TASK={number}")
        for event in ("task_assigned", "data_loaded", "round_trained"):
            assert event in story


def test_a_task_continues_after_a_power_cut_of_the_server(deployment: Deployment, digests: set[str]) -> None:
    number = deployment.submit(**LONG)
    deployment.reached(number, 20)
    deployment.laboratory["server"].power_cut()
    deployment.laboratory["server"].boot()
    assert deployment.completed(number)["round"] == LONG["num_rounds"]
    assert "task_resumed" in deployment.laboratory["server"].journal(f"FEDSIM_TASK={number}")
    digests.add(deployment.digest(number, LONG["num_rounds"]))


def test_a_task_waits_for_a_node_whose_cable_is_pulled_and_continues(deployment: Deployment, digests: set[str]) -> None:
    number = deployment.submit(**LONG)
    deployment.reached(number, 20)
    network = deployment.laboratory.network
    network.cut("node-b")
    try:
        waiting = deployment.await_task(number, "waiting", lambda task: task["waiting_for"] == ["node-b"])
    finally:
        network.mend("node-b")
    assert waiting["round"] < LONG["num_rounds"]
    deployment.completed(number)
    digests.add(deployment.digest(number, LONG["num_rounds"]))
    assert len(digests) == 1


def test_receivers_restart_under_load_and_no_connection_is_refused(deployment: Deployment, digests: set[str]) -> None:
    number = deployment.submit(**LONG)
    for round_number, name in zip((20, 50, 80), ("server", "node-a", "node-b"), strict=True):
        deployment.reached(number, round_number)
        deployment.laboratory[name].run("systemctl", "restart", "fedsim-receiver")
    deployment.completed(number)
    digests.add(deployment.digest(number, LONG["num_rounds"]))
    assert len(digests) == 1
    for name in HOSTS:
        assert "refused" not in deployment.laboratory[name].journal(f"FEDSIM_TASK={number}")


def test_certificates_rotate_during_a_task_without_a_restart(deployment: Deployment) -> None:
    host = deployment.laboratory["node-a"]
    certificate = host.run("cat", "/etc/fedsim/pki/host.crt")
    started = host.run("systemctl", "show", "--property=ExecMainStartTimestampMonotonic", *SERVICES["node-a"])
    number = deployment.submit(**LONG | {"num_rounds": 100_000})
    deployment.reached(number, 5)
    deployment.play("rotate-certs.yml")
    assert host.run("cat", "/etc/fedsim/pki/host.crt") != certificate
    assert host.run("systemctl", "show", "--property=ExecMainStartTimestampMonotonic", *SERVICES["node-a"]) == started
    deployment.reached(number, deployment.task(number)["round"] + 20)
    deployment.fedsim("stop", str(number))
    deployment.await_task(number, "stopped", lambda task: task["state"] == "stopped")
    for name in HOSTS:
        assert deployment.laboratory[name].journal("--priority=warning", f"FEDSIM_TASK={number}") == ""


def test_the_run_after_an_interrupted_one_completes_it(deployment: Deployment) -> None:
    """Interrupted at a place that each commit chooses anew; at twenty in test_interruptions_on_hosts.py."""
    last = deployment.tasks_of("site.yml")
    place = 1 + int(deployment.commit(), 16) % last
    changed = deployment.changed_everywhere(7)
    deployment.interrupted("site.yml", place, **changed)
    deployment.play("site.yml", **changed)
    assert deployment.outdated() == {}, f"after an interruption at task {place} of {last}"
    for name, services in SERVICES.items():
        host = deployment.laboratory[name]
        assert host.run("systemctl", "is-active", *services).split() == ["active"] * len(services)
        assert name == "server" or "keep_models: 7" in host.run("cat", "/etc/fedsim/client.yml")
    deployment.completed(deployment.submit())


def test_a_daemon_that_does_not_start_is_reported_in_its_own_words(deployment: Deployment) -> None:
    node = deployment.laboratory["node-a"]
    node.run("systemctl", "stop", "fedsim-client")
    node.run("systemd-run", "--unit=other", "python3", "-m", "http.server", "9103", "--bind", "127.0.0.1")
    try:
        with pytest.raises(CommandError) as failed:
            deployment.play("site.yml", "node-a")
    finally:
        node.run("systemctl", "stop", "other")
    for words in (
        "fedsim-client.service does not start: failed node=node-a problem=metrics cannot be served on 127.0.0.1:9103",
        "fedsim-fleet doctor says:",
        "journalctl -u fedsim-client -n 50",
    ):
        assert words in str(failed.value)
    node.run("systemctl", "restart", "fedsim-client")


def test_another_version_is_installed_by_upgrade_yml_only(deployment: Deployment) -> None:
    deployment.laboratory["node-b"].run(
        "ln", "--symbolic", "--force", "--no-dereference", "0.1.0", "/opt/fedsim/current"
    )
    try:
        with pytest.raises(CommandError, match=r"version 0\.1\.0 is installed, .* run upgrade\.yml"):
            deployment.play("site.yml", "node-b")
    finally:
        version = deployment.version("server")
        deployment.laboratory["node-b"].run("ln", "-sfn", version, "/opt/fedsim/current")


def test_an_upgrade_during_a_task_keeps_its_workers_version(
    deployment: Deployment, next_version: Path, digests: set[str]
) -> None:
    before = deployment.version("server")
    number = deployment.submit(**LONG, round_timeout_seconds=3600)
    deployment.reached(number, 20)
    # The task waits for this worker, and leaves the processors to the upgrade, until the node is restarted.
    deployment.laboratory["node-b"].run("pkill", "--signal", "STOP", "--full", "fedsim.worker")
    deployment.packages = next_version
    deployment.play("upgrade.yml")
    still_needed = deployment.task(number)["state"] == "running"  # the play's last step removes what no task needs
    assert deployment.completed(number)["round"] == LONG["num_rounds"]
    assert {deployment.version(name) for name in HOSTS} == {NEXT_VERSION}
    told = json.dumps(deployment.checkpoint(number, LONG["num_rounds"]))
    assert f'"{before}"' in told
    assert NEXT_VERSION not in told
    digests.add(deployment.digest(number, LONG["num_rounds"]))
    assert len(digests) == 1
    if still_needed:
        for name in HOSTS:
            assert before in deployment.laboratory[name].run("ls", "/opt/fedsim").split()


def test_a_backup_is_made_while_the_lab_works(deployment: Deployment) -> None:
    deployment.play("backup.yml")
    (backup,) = deployment.inventory.with_name("backups").glob("*.tar")
    shutil.copy(backup, backup.with_name("damaged.tar"))
    with backup.with_name("damaged.tar").open("r+b") as file:
        at = backup.read_bytes().index(b"CREATE TABLE")
        file.seek(at)
        file.write(b"DELETE")
    with pytest.raises(CommandError, match="is damaged: use another backup"):
        deployment.play("restore.yml", backup=str(backup.with_name("damaged.tar")))
    with pytest.raises(CommandError, match="run this again with -e confirm=yes"):
        deployment.play("restore.yml", backup=str(backup))


def test_a_backup_is_encrypted_to_the_owners_key(deployment: Deployment) -> None:
    _, recipient = deployment.owner_key()
    deployment.play("site.yml", "server", fedsim_backup_recipient=recipient)
    deployment.play("backup.yml", fedsim_backup_recipient=recipient)
    folder = deployment.inventory.with_name("backups")
    (encrypted,) = folder.glob("fedsim-*.tar.age")
    assert b"CREATE TABLE" not in encrypted.read_bytes()
    left = deployment.laboratory["server"].run("find", "/var/lib/fedsim", "-maxdepth", "1", "-type", "f")
    assert left == "", "neither the plain text nor what was fetched stays on the host"
    with pytest.raises(CommandError, match="is encrypted: add -e identity=FILE"):
        deployment.play("restore.yml", backup=str(encrypted))
    with pytest.raises(CommandError, match="is damaged, or"):
        deployment.play("restore.yml", backup=str(encrypted), identity=str(deployment.owner_key("another")[0]))


def test_an_institution_deploys_a_second_node_on_its_host_itself(deployment: Deployment) -> None:
    hospital = {"name": "hospital", "address": HOSTS["node-a"], "port": 9012}
    deployment.play("site.yml", fedsim_other_nodes=[hospital])
    host = deployment.laboratory["node-a"]
    folder = "/etc/fedsim/second"
    host.run("mkdir", "--parents", f"{folder}/pki")
    request = host.run("/opt/fedsim/current/bin/fedsim-ca", "request", "hospital", "--key", f"{folder}/pki/host.key")
    for name, text in {**SECOND, f"{folder}/pki/host.crt": deployment.sign(request, "hospital")}.items():
        host.run("install", "-D", "--mode=644", "/dev/stdin", name, text=text)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "enable", "--now", "fedsim-client@second", "fedsim-receiver@second")
    number = deployment.submit(num_nodes=3)
    assert deployment.completed(number)["nodes"] == ["hospital", *NODES]
    for name in ("hospital", "node-a"):
        assert "round_trained" in host.journal(
            f"FEDSIM_TASK={number}", f"FEDSIM_NODE={name}", "FEDSIM_EVENT=round_trained"
        )
    assert host.journal("--priority=warning", "--unit=fedsim-*@second.service") == ""


def test_a_removed_node_is_out_of_the_lab_and_bare(deployment: Deployment) -> None:
    server, node = deployment.laboratory["server"], deployment.laboratory["node-b"]
    running = deployment.submit(num_rounds=100_000)
    deployment.reached(running, 1)
    with pytest.raises(CommandError, match=f"Task {running} is running"):
        deployment.play("remove-node.yml", node="node-b")
    with pytest.raises(CommandError, match="Wait until the server knows"):  # its end, but not for a day
        deployment.play("remove-node.yml", node="node-b", drain="yes", drain_hours=0.003)
    assert "accept_tasks: false" in node.run("cat", "/etc/fedsim/client.yml")
    assert deployment.task(running)["state"] == "running"
    deployment.fedsim("stop", str(running))
    node.power_cut()
    deployment.play("remove-node.yml", node="node-b")
    assert "node-b" not in server.run("cat", "/etc/fedsim/server.yml", "/etc/fedsim/receiver.yml")
    assert deployment.completed(deployment.submit())["nodes"] == ["node-a"]
    node.boot()
    server.await_journal("of client node-b was revoked", "--unit=fedsim-receiver")
    deployment.play("remove-node.yml", node="node-b")
    assert deployment.left_on("node-b") == []


def test_uninstalling_leaves_nothing_and_a_backup_comes_back_on_bare_hosts(deployment: Deployment) -> None:
    with pytest.raises(CommandError, match="confirm=yes"):
        deployment.play("uninstall.yml")
    assert deployment.uninstalled() == {name: [] for name in HOSTS}
    (backup,) = deployment.inventory.with_name("backups").glob("fedsim-*.tar.age")
    deployment.play("restore.yml", backup=str(backup), identity=str(deployment.owner_key()[0]))
    assert not list(backup.parent.glob("*.transfer"))
    deployment.log_in("grace", PASSWORD)
    (first, *_) = sorted(deployment.fedsim("tasks")["tasks"], key=lambda task: int(task["number"]))
    assert deployment.download(first["number"]) == 3
    deployment.completed(deployment.submit())
