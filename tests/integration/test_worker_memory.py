"""Nothing of a model's size is in memory twice, and a worker that runs out of memory says so."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.worker.forking import ForkServers
from fedsim.worker.process import WorkerProcess

MEMORY = Path("/sys/fs/cgroup/memory")
SCRIPT = Path(__file__).with_name("worker_memory.py")


def test_a_job_needs_no_more_memory_than_its_computation(tmp_path: Path) -> None:
    """Of a model of 65 MB, in multiples of it: parameters and gradients, and the sum of a chunk of many clients."""
    ran = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], check=True, capture_output=True, text=True)
    peaks = json.loads(ran.stdout)
    assert peaks["train_one"] <= 2.3, peaks
    assert peaks["train_many"] <= 4.4, peaks
    assert peaks["start"] <= 2.3, peaks
    assert peaks["initial"] <= 2.3, peaks
    assert peaks["evaluate"] <= 1.2 + 0.2, peaks  # 0.2 are 13 MB, for what evaluating needs for any model
    assert peaks["aggregate"] <= 0.6, peaks  # blocks of one size for any model
    assert peaks["checkpoint"] <= 0.6, peaks


@pytest.mark.skipif(not os.access(MEMORY / "tasks", os.W_OK), reason="no memory controller (cgroup v1) of one's own")
def test_a_worker_that_the_kernel_kills_for_its_memory_is_reported_as_out_of_memory() -> None:
    with selectors.DefaultSelector() as selector:
        servers = ForkServers(selector)
        worker = WorkerProcess(servers, lambda: None, threads=1, learns=False)
        group = MEMORY / f"fedsim-test-{os.getpid()}"
        group.mkdir()
        try:
            while worker.pid is None:
                for key, _ in selector.select():
                    key.data()
            (group / "memory.limit_in_bytes").write_text(str(8 << 20))
            (group / "cgroup.procs").write_text(str(worker.pid))
            worker._unsent += b" " * (64 << 20)
            ended = None
            while ended is None:
                _, ended = worker.replies()
                if ended is None:
                    for key, _ in selector.select():
                        key.data()
            assert ended == "was killed because it ran out of memory"
        finally:
            worker.close()
            servers.close()
            group.rmdir()
