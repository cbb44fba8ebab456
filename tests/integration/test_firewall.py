"""The firewall's rules, loaded by the role's own script into the kernel, in a network of this test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import jinja2
import pytest
from presence import missing

ROLE = Path(__file__).parents[2] / "ansible" / "roles" / "common"
FACTS = {
    "common_firewall_web_ports": [80, 443],
    "common_firewall_receiver_ports": [9001],
    "fedsim_firewall_rules": ["tcp dport 7777 ip saddr 192.0.2.7 accept"],
    "ansible_port": 2222,
}


def rules(**facts: object) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True)  # noqa: S701
    template = (ROLE / "templates" / "firewall.nft.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(**FACTS | facts)


def loaded(folder: Path, *commands: str) -> str:
    """Run commands in a new network, in which `apply` is the script with its files in this folder."""
    if os.geteuid() != 0 or shutil.which("nft") is None:
        missing("a network of its own needs root, and nftables: apt-get install nftables")
    script = (ROLE / "files" / "apply_firewall.sh").read_text(encoding="utf-8").replace("/etc/fedsim", str(folder))
    (folder / "apply").write_text(script.replace("PATH=", f"PATH={folder}:"), encoding="utf-8")
    (folder / "apply").chmod(0o755)
    (folder / "sshd").write_text("#!/bin/sh\nprintf 'port 2200\\nport 22\\n'\n")
    (folder / "sshd").chmod(0o755)
    (folder / "firewall.nft").write_text(rules(), encoding="utf-8")
    done = subprocess.run(
        ["/usr/bin/unshare", "--net", "/bin/sh", "-ec", "\n".join(commands)],
        check=False, capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_rules_replace_only_their_own_table_and_keep_ssh_open(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        "nft add table inet other",
        "./apply 198.18.0.11 198.18.1.0/24 2001:db8::1 localhost",
        "./apply 198.18.0.11 198.18.1.0/24 2001:db8::1 localhost",
        "nft list ruleset",
    )
    assert found.count("table inet fedsim") == found.count("table inet other") == 1
    (ssh,) = [line.strip() for line in found.splitlines() if "2200" in line]
    assert ssh == "elements = { 22, 2200, 2222 }"
    for part in ("policy drop", "198.18.0.11", "198.18.1.0/24", "2001:db8::1", "tcp dport 7777"):
        assert part in found


def test_without_a_resolver_the_last_addresses_are_used(tmp_path: Path) -> None:
    assert "198.18.0.11" in loaded(tmp_path, "./apply 198.18.0.11", "./apply no-such-host.invalid", "nft list ruleset")


@pytest.mark.parametrize("rule", ["tcp dport nonsense accept", "}"])
def test_a_rule_that_is_not_valid_changes_nothing(tmp_path: Path, rule: str) -> None:
    broken = rules(fedsim_firewall_rules=[rule])
    (tmp_path / "broken").write_text(broken, encoding="utf-8")
    found = loaded(
        tmp_path,
        "./apply 198.18.0.11",
        "cp broken firewall.nft",
        "if ./apply 198.18.0.12 2> /dev/null; then echo loaded; fi",
        "nft list ruleset",
    )
    assert "loaded" not in found
    assert "198.18.0.11" in found
