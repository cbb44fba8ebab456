"""A whole lab in TLS, every daemon a process: certificates are replaced and old ones revoked while a task runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import yaml
from platform_support import Platform, digits_lab
from tls_support import Pki, replace

from fedsim.spool.files import Role

# Who each process is.
PROCESSES = {
    "receiver": ("server", Role.SERVER),
    "server": ("server", Role.SERVER),
    "node-a-receiver": ("node-a", Role.CLIENT),
    "node-a": ("node-a", Role.CLIENT),
    "node-b-receiver": ("node-b", Role.CLIENT),
    "node-b": ("node-b", Role.CLIENT),
    "web": ("web", Role.WEB),
}
HOSTS = dict(PROCESSES.values())
# Rounds of a third of a second or so, so that there is a middle to be disturbed in.
LONG = {"local_epochs": 6, "num_rounds": 30}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Platform]:
    platform = digits_lab(tmp_path_factory.mktemp("lab"))
    for process, (name, role) in PROCESSES.items():
        path = platform.config(process)
        tls = pki.tls(name, role).model_dump(mode="json")
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"tls": tls}))
    with platform:
        yield platform


def log_of(lab: Platform, process: str) -> str:
    return lab.processes[process].log.read_text(encoding="utf-8")


def reload(lab: Platform) -> None:
    """SIGHUP for every process; on return each has said that it is done."""
    before = {process: log_of(lab, process).count("reloaded") for process in PROCESSES}
    for process in PROCESSES:
        os.kill(lab.processes[process].pid, signal.SIGHUP)
    for process, count in before.items():
        lab.await_log(process, "reloaded", times=count + 1)


def test_a_rotation_in_the_middle_of_a_task_fails_no_transfer_and_no_task(lab: Platform, pki: Pki) -> None:
    number = lab.submit(**LONG)
    for round_number in (2, 5):
        lab.await_round(number, round_number)
        for name, role in HOSTS.items():
            pki.issue(name, role)
        reload(lab)
        for name in HOSTS:
            assert len(pki.authority.revoke(name, keep_newest=True)) == 1
        pki.publish(*HOSTS)
        reload(lab)
    lab.completed(number)
    for process in PROCESSES:
        for trouble in ("reload_failed", "restart_needed", "hello_refused", "notification_lost", "task_failed"):
            assert trouble not in log_of(lab, process)


def test_the_web_notifies_the_server_with_its_new_certificate_and_continues_with_the_last_valid_one(
    lab: Platform, pki: Pki
) -> None:
    pki.issue("web", Role.WEB)
    pki.authority.revoke("web", keep_newest=True)
    pki.publish(*HOSTS)
    reload(lab)
    path = pki.hosts / "web" / "host.key"
    good = path.read_bytes()
    replace(path, (pki.hosts / "server" / "host.key").read_bytes())
    os.kill(lab.processes["web"].pid, signal.SIGHUP)
    lab.await_log("web", "reload_failed")
    assert "is not the key of" in log_of(lab, "web")
    lab.completed(lab.submit(num_rounds=1))
    assert "notification_lost" not in log_of(lab, "web")
    replace(path, good)
    reload(lab)


def test_a_node_whose_certificate_is_revoked_takes_no_part_until_it_has_another(lab: Platform, pki: Pki) -> None:
    (gone,) = pki.authority.revoke("node-b")
    pki.publish("server")
    for process in ("receiver", "server"):
        os.kill(lab.processes[process].pid, signal.SIGHUP)
    lab.await_log("receiver", f"certificate {gone.serial} of client node-b was revoked")
    number = lab.submit(num_rounds=2)  # while the server still holds the node for online
    lab.await_log("server", f"certificate {gone.serial} of client node-b was revoked", times=2)
    assert not lab.task(number).state.finished
    pki.issue("node-b", Role.CLIENT)
    pki.publish("node-b")
    reload(lab)
    lab.completed(number)
