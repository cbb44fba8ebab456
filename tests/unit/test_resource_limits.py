"""What a service may use of its host: the inventory says it, and systemd reads it after the shared drop-ins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("unit_files", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
files = module.unit_files(sys.argv[2], ["fedsim-receiver", "fedsim-client"], json.loads(sys.argv[3]))
print(json.dumps({file["path"]: file["content"] for file in files}))
"""
FILTER = ROOT / "ansible" / "roles" / "common" / "filter_plugins" / "unit_files.py"


def limits(**resources: Any) -> dict[str, str]:
    """What the filter makes of them, in a process of its own: importing Ansible changes functions that torch needs."""
    arguments = [str(FILTER), str(ROOT / "systemd"), json.dumps({"fedsim-client": resources})]
    ran = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise ValueError(ran.stderr)
    return {path: content for path, content in json.loads(ran.stdout).items() if path.endswith("30-resources.conf")}


def test_the_inventory_sets_limits_of_a_service_and_none_of_others() -> None:
    found = limits(MemoryMax="24G", TasksMax=512, CPUWeight=50)
    place = "/etc/systemd/system/{}.service.d/30-resources.conf"
    assert sorted(found) == [place.format("fedsim-client"), place.format("fedsim-receiver")]
    client = found[place.format("fedsim-client")].splitlines()
    assert client[1:] == ["[Service]", "MemoryMax=24G", "TasksMax=512", "CPUWeight=50"]
    assert found[place.format("fedsim-receiver")].splitlines()[1:] == ["[Service]"]
    shared = [path.name for path in (ROOT / "systemd" / "fedsim-.service.d").iterdir()]
    assert max(shared) < "30-resources.conf", "the last value counts"


def test_another_setting_is_an_error_that_names_those_that_can_be_set() -> None:
    with pytest.raises(ValueError, match="has ExecStart; what can be set is MemoryMax, TasksMax, CPUWeight"):
        limits(ExecStart="/bin/sh")


def test_the_role_passes_the_inventory_s_limits_to_the_filter() -> None:
    assert yaml.safe_load((ROOT / "ansible" / "group_vars" / "all.yml").read_text())["fedsim_resources"] == {}
    tasks = yaml.safe_load((ROOT / "ansible" / "roles" / "common" / "tasks" / "main.yml").read_text())
    assert "unit_files(fedsim_services, fedsim_resources)" in tasks[0]["fedsim_files"]["files"]
