"""A node that does not get ready holds neither its task for ever nor the place of others."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platform_support import Platform, digits_lab

from fedsim.store.records import Task


@contextmanager
def stopped(lab: Platform, node: str) -> Iterator[None]:
    """A node's daemon that does nothing, while the server has heard of it just now."""
    pid = lab.processes[node].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_late_node_gives_way_to_other_tasks_or_is_left_out(tmp_path: Path) -> None:
    server = {"max_running_tasks": 1, "prepare_timeout_seconds": 15, "node_timeout_seconds": 10}
    with digits_lab(tmp_path, server=server) as lab:
        lab.completed(lab.submit(num_rounds=1))  # both are online, and their workers have been started once
        with stopped(lab, "node-a"):
            both = lab.submit(num_nodes=2, num_rounds=2)

            def waits() -> Task | None:
                task = lab.task(both)
                assert not task.state.finished, task.reason
                return task if task.phase == "waiting" and "which" in " ".join(task.waiting_for) else None

            task = lab.await_row(waits)
            assert "node-a, which is not ready 15 s after the start" in task.waiting_for
            assert lab.completed(lab.submit(nodes=["node-b"], num_nodes=1, num_rounds=1)).nodes == ("node-b",)
            lab.kill("server")
            lab.start("server")  # which tries again, and finds the same
            lab.await_row(waits)
        assert lab.completed(both).nodes == ("node-a", "node-b")

        with stopped(lab, "node-a"):
            alone = lab.submit(num_nodes=0, num_rounds=1)
            done = lab.completed(alone)
        assert done.nodes == ("node-b",)
        assert done.left_out == {"node-a": "is not ready 15 s after the start"}
        lab.completed(lab.submit(num_nodes=2, num_rounds=1))
