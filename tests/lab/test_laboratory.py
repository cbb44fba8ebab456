"""The laboratory itself: what the other tests rely on."""

from __future__ import annotations

import sys

import pytest
from commands import CommandError
from laboratory import HOSTS, Laboratory

REACH = "import socket; socket.create_connection(('{}', {}), timeout=2)"


def reaches(laboratory: Laboratory, host: str, other: str) -> bool:
    """Whether a host can open a connection to another one's sshd."""
    try:
        laboratory[host].run("python3", "-c", REACH.format(HOSTS[other], 22))
    except CommandError:
        return False
    return True


def test_hosts_boot_in_seconds_and_nothing_failed(laboratory: Laboratory) -> None:
    for name, host in laboratory.hosts.items():
        assert host.run("systemctl", "is-system-running").strip() == "running"
        assert host.run("hostname").strip() == name
    print({name: round(host.boot_seconds, 1) for name, host in laboratory.hosts.items()})  # noqa: T201 - with -s
    assert max(host.boot_seconds for host in laboratory.hosts.values()) < 30


def test_a_host_is_bare(laboratory: Laboratory) -> None:
    installed = laboratory["server"].run("dpkg-query", "--show", "--showformat=${Package}\n").split()
    assert not {"mariadb-server", "nginx", "python3-venv", "python3-apt"} & set(installed)


def test_control_logs_in_to_every_host_and_knows_it_by_its_key(laboratory: Laboratory) -> None:
    for name, address in HOSTS.items():
        assert laboratory.control.ssh(address, "hostname; id -un").stdout.split() == [name, "root"]


def test_a_host_with_another_key_is_not_believed(laboratory: Laboratory) -> None:
    control = laboratory.control
    known = control.ssh_config.with_name("known_hosts")
    before = known.read_text(encoding="utf-8")
    known.write_text(before.replace(HOSTS["node-a"], HOSTS["node-b"]), encoding="utf-8")
    try:
        refused = control.ssh(HOSTS["node-a"], "true", check=False)
    finally:
        known.write_text(before, encoding="utf-8")
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr


@pytest.mark.parametrize("target", ["192.0.2.1", "151.101.2.132", "10.255.255.53"])
def test_no_way_leads_out(laboratory: Laboratory, target: str) -> None:
    with pytest.raises(CommandError, match="Network is unreachable"):
        laboratory["node-b"].run("python3", "-c", REACH.format(target, 80))
    outside = laboratory.control.run(sys.executable, "-c", REACH.format(target, 80), check=False)
    assert "Network is unreachable" in outside.stderr


def test_a_power_cut_and_a_boot_keep_what_was_written(laboratory: Laboratory) -> None:
    host = laboratory["node-b"]
    machine, boot = host.run("cat", "/etc/machine-id"), host.run("cat", "/proc/sys/kernel/random/boot_id")
    host.run("sh", "-c", "echo kept > /var/lib/kept")
    host.power_cut()
    assert not reaches(laboratory, "node-a", "node-b")
    host.boot()
    assert host.run("cat", "/etc/machine-id") == machine
    assert host.run("cat", "/proc/sys/kernel/random/boot_id") != boot
    assert laboratory.control.ssh(host.address, "cat /var/lib/kept").stdout == "kept\n"


def test_a_reboot_in_order_stops_what_runs_and_keeps_the_journal(laboratory: Laboratory) -> None:
    host = laboratory["node-b"]
    host.run("sh", "-c", "echo before the reboot | systemd-cat -t lab")
    host.reboot()
    told = host.journal("--boot=-1", "-t", "lab")
    assert "before the reboot" in told
    assert "Stopped" in host.journal("--boot=-1", "-u", "ssh.service")


def test_a_cut_cable_isolates_one_host_and_mending_it_brings_it_back(laboratory: Laboratory) -> None:
    laboratory.network.cut("node-a")
    try:
        assert not reaches(laboratory, "server", "node-a")
        assert not reaches(laboratory, "node-a", "node-b")
        assert reaches(laboratory, "server", "node-b")
        assert laboratory["node-a"].run("hostname") == "node-a\n"  # it runs on
    finally:
        laboratory.network.mend("node-a")
    assert laboratory.control.ssh(HOSTS["node-a"], "hostname").stdout == "node-a\n"
    assert reaches(laboratory, "server", "node-a")
