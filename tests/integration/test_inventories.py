"""Inventories as people have them: each works or says what to do. Nothing is changed on this machine."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path

import yaml

PLAYBOOKS = Path(__file__).parents[2] / "ansible"
PROGRAMS = Path(sys.executable).parent
# As of a host whose name is not in DNS, and of a user whose shell greets.
SUDO = """#!/bin/sh
echo "sudo: unable to resolve host node-a: Name or service not known" >&2
echo "Welcome."
while [ "${1#-}" != "$1" ]; do case "$1" in -u) shift 2;; *) shift;; esac; done
exec "$@"
"""


def play(
    inventory: Path, *options: str, playbook: str = "site.yml", expected: bool | None = None, **given: object
) -> str:
    """Run a playbook, which must fail unless only the hosts are checked; returns its output without line breaks."""
    if expected is None:
        expected = playbook == "site.yml" and "--check" in options
    done = subprocess.run(
        [PROGRAMS / "ansible-playbook", "-i", inventory, "-e", json.dumps(given), *options, PLAYBOOKS / playbook],
        cwd=inventory.parent,
        env={**os.environ, "HOME": str(inventory.parent), "ANSIBLE_CONFIG": str(PLAYBOOKS / "ansible.cfg")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == expected, done.stdout
    assert "changed=1" not in done.stdout
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


def write(path: Path, server: str = "localhost", node: str | None = None, **variables: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    groups = {
        "fedsim_server": {"hosts": {server: {}}},
        "fedsim_nodes": {"hosts": {node or socket.gethostname(): {}}},
    }
    common = {"ansible_connection": "local", "fedsim_admin": "ada", "fedsim_ports": [1], **variables}
    path.write_text(yaml.safe_dump({"all": {"vars": common, "children": groups}}))
    return path


def gathered(folder: Path, *systems: str) -> None:
    """Write what `make gather` would have gathered for these systems, that of this machine unless others are named."""
    release = platform.freedesktop_os_release()
    own = f"{release['NAME'].split()[0]} {release.get('VERSION_ID', '')}"
    releases = {system: {} for system in systems or [own]}
    (folder / "gathered.json").write_text(json.dumps({"version": "0.2.0", "releases": releases}))


def test_without_an_inventory_it_says_which_file_to_copy(tmp_path: Path) -> None:
    assert f"Copy {PLAYBOOKS}/inventory/example.yml to lab.yml" in play(tmp_path / "none.yml")


def test_two_labs_in_one_folder_do_not_share_their_secrets(tmp_path: Path) -> None:
    write(tmp_path / "berlin.yml")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "inventory").write_text("berlin.yml")
    printed = play(write(tmp_path / "paris.yml"))
    assert f"in {tmp_path}/secrets belong to the lab of berlin.yml. Move paris.yml into a folder of its own" in printed


def test_without_gathered_packages_it_says_what_to_run(tmp_path: Path) -> None:
    printed = play(write(tmp_path / "lab.yml"), fedsim_packages=str(tmp_path))
    assert f"{tmp_path}/gathered.json does not exist: run `make gather`" in printed


def test_a_host_with_a_release_that_was_not_gathered_is_named(tmp_path: Path) -> None:
    gathered(tmp_path, "Debian 99")
    printed = play(write(tmp_path / "lab.yml"), "--check", fedsim_packages=str(tmp_path), expected=False)
    assert "localhost is not ready: - it runs" in printed


def test_with_check_hosts_are_examined_and_nothing_else(tmp_path: Path) -> None:
    gathered(tmp_path)
    inventory = write(tmp_path / "lab.yml")
    printed = play(
        inventory, "--check", fedsim_packages=str(tmp_path), preflight_free_bytes=0, preflight_memory_mebibytes=1
    )
    assert "Check system, disk, ports, names and clock" in printed
    assert "Install" not in printed
    assert "Only site.yml can be run with --check" in play(inventory, "--check", playbook="backup.yml")


def test_hosts_by_name_alone_and_a_talkative_sudo_work_outside_of_the_checkout(tmp_path: Path) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text(SUDO)
    sudo.chmod(0o755)
    gathered(tmp_path)
    inventory = write(tmp_path / "lab" / "lab.yml", ansible_become=True, ansible_become_exe=str(sudo))
    printed = play(
        inventory,
        fedsim_packages=str(tmp_path),
        preflight_free_bytes=0,
        preflight_memory_mebibytes=1,
        preflight_clock_seconds=-1,  # which fails as the last check
    )
    assert "localhost is not ready: - its clock differs by" in printed
    assert f"{socket.gethostname()} is not ready: - its clock differs by" in printed
