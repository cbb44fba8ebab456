"""The leftovers of a killed run are removed by the next one; a run in progress is not disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cgroup import ControlGroup
from image import CACHE
from laboratory import PREFIX, Laboratory, sweep
from network import networks

BOOT_AND_WAIT = """
from laboratory import Laboratory
with Laboratory.planned() as laboratory:
    laboratory["node-a"].boot()
    print("booted", flush=True)
    input()
"""


@pytest.mark.long
def test_a_killed_run_is_cleared_up_by_the_next_and_a_living_one_is_not(laboratory: Laboratory) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BOOT_AND_WAIT],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"booted\n"
        name = f"{PREFIX}{other.pid}"
        assert ControlGroup(name).members()
        other.send_signal(signal.SIGKILL)
    sweep()
    assert not (CACHE / "runs" / name).exists()
    assert not any(folder.exists() for folder in ControlGroup(name).folders)
    assert name not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert not networks(name)
    assert all(host.run("hostname").strip() == host.name for host in laboratory.hosts.values())
