"""Ansible's own checks of playbooks and roles; what they do to hosts is shown in tests/lab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLAYBOOKS = Path(__file__).parents[2] / "ansible"
PROGRAMS = Path(sys.executable).parent


def test_ansible_lint_finds_nothing_in_its_strictest_profile(tmp_path: Path) -> None:
    # Its home and cache are this test's; the programs that it calls lie beside this Python.
    around = {
        **os.environ,
        "HOME": str(tmp_path),
        "ANSIBLE_HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [str(PROGRAMS / "ansible-lint"), "--offline", "--nocolor", "--profile", "production"],
        cwd=PLAYBOOKS,
        env=around,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("role", sorted(path.name for path in (PLAYBOOKS / "roles").iterdir()))
def test_a_role_declares_its_arguments(role: str) -> None:
    assert (PLAYBOOKS / "roles" / role / "meta" / "argument_specs.yml").is_file()
