"""The action that runs a role's script on a host: arguments, environment, report, and nothing in check mode."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

PLAYBOOKS = Path(__file__).parents[2] / "ansible"
PROGRAM = Path(sys.executable).with_name("ansible-playbook")
ARGUMENTS = ["two words", "it's", '"$HOME"', "", "a\nline"]
SHELL = """
for argument; do printf '<%s>' "$argument"; done
cat  # its standard input is empty
echo
echo "$GIVEN"
"""
PYTHON = "import json, sys\nprint(json.dumps(sys.argv[1:]))\nprint('changed')\n"


def test_a_script_gets_its_arguments_and_reports_what_it_did(tmp_path: Path) -> None:
    for name, text in {"a.sh": SHELL, "b.py": PYTHON, "c.sh": "echo why >&2; exit 3"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    given = {"arguments": ARGUMENTS}
    tasks: list[dict[str, Any]] = [
        {"fedsim_script": {"name": "a.sh", **given}, "environment": {"GIVEN": "a 'b'"}, "register": "shell"},
        {"fedsim_script": {"name": "b.py", **given}, "register": "python"},
        {"fedsim_script": {"name": "c.sh"}, "ignore_errors": True, "register": "failed"},
        {"fedsim_script": {"name": "b.py"}, "check_mode": True, "register": "skipped"},
    ]
    results = "{{ [shell, python, failed, skipped] | to_json }}"
    tasks.append({"ansible.builtin.copy": {"content": results, "dest": f"{tmp_path}/results", "mode": "0600"}})
    play = tmp_path / "play.yml"
    play.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    done = subprocess.run(
        [PROGRAM, "--connection", "local", play],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "LANG": "C.UTF-8",
            "ANSIBLE_CONFIG": str(PLAYBOOKS / "ansible.cfg"),
        },
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shell, python, failed, skipped = json.loads((tmp_path / "results").read_text(encoding="utf-8"))
    assert shell["stdout_lines"] == ["".join(f"<{one}>" for one in ARGUMENTS[:4]) + "<a", "line>", "a 'b'"]
    assert json.loads(python["stdout_lines"][0]) == ARGUMENTS
    assert (shell["changed"], python["changed"]) == (False, True)
    assert (failed["rc"], failed["stderr"].strip(), failed["msg"]) == (3, "why", "c.sh ended with exit code 3")
    assert skipped["skipped"]
