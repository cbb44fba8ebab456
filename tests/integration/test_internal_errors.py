"""An unexpected exception, injected into each handler of server and node in turn, interrupts one task and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from platform_support import digits_lab

# In the order of the tasks' numbers: the n-th task of the lab meets the n-th exception, once.
HANDLERS = {
    "server": (
        "fedsim.server.task",
        "ServerTask",
        (
            "_begin",
            "node_reported",
            "file_arrived",
            "worker_replied",
            "transfer_ended",
            "carry_out",
            "_write_roster",
            "_commit",
            "publish_progress",
        ),
    ),
    "client": (
        "fedsim.client.task",
        "NodeTask",
        ("_begin", "_load", "scan_received", "workers_ready", "worker_replied", "_offer", "transfer_ended"),
    ),
}
INJECT = """
import functools, importlib, json, os


def broken(method, handler, number):
    raised = []

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        task = getattr(self, "plan", None) or self.assignment
        if task.number == number and not raised:
            raised.append(task)
            raise ZeroDivisionError(f"injected into {handler}")
        return method(self, *args, **kwargs)

    return call


def inject(module, name, handlers, first):
    contained = importlib.import_module("fedsim.runtime.driver").contained
    target = getattr(importlib.import_module(module), name)
    for number, handler in enumerate(handlers, first):
        method = getattr(target, handler)
        new = broken(method, handler, number)
        setattr(target, handler, contained(new) if hasattr(method, "__wrapped__") else new)


command = open("/proc/self/cmdline").read()
for daemon, faults in json.loads(os.environ["INJECTED_FAULTS"]).items():
    if f"bin/fedsim-{daemon}\\0" in command:
        inject(*faults, int(os.environ[f"FIRST_{daemon.upper()}"]))
"""


def test_an_exception_in_any_handler_interrupts_its_task_and_changes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inject").mkdir()
    (tmp_path / "inject" / "sitecustomize.py").write_text(INJECT, encoding="utf-8")
    on_server, on_node = (HANDLERS[daemon][2] for daemon in ("server", "client"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "inject"))
    monkeypatch.setenv("INJECTED_FAULTS", json.dumps(HANDLERS))
    monkeypatch.setenv("FIRST_SERVER", "2")
    monkeypatch.setenv("FIRST_CLIENT", str(2 + len(on_server)))
    with digits_lab(tmp_path / "lab", nodes=1, client={"announce_seconds": 0.5}) as lab:
        daemons = {name: process.pid for name, process in lab.processes.items()}
        plain, *disturbed = [
            lab.submit(num_rounds=2, num_nodes=1, evaluate_every=1, save_every=2)
            for _ in range(1 + len(on_server) + len(on_node))
        ]
        digest = lab.finish(plain).digest
        assert digest is not None
        for number, handler in zip(disturbed, (*on_server, *on_node), strict=True):
            task = lab.finish(number)
            assert (handler, task.state, task.reason, task.digest) == (handler, "completed", "2 rounds done", digest)
        logs = {name: lab.processes[name].log.read_text(encoding="utf-8") for name in ("server", "node-a")}
        for name, handlers in (("server", on_server), ("node-a", on_node)):
            for handler in handlers:
                assert logs[name].count(f"ZeroDivisionError: injected into {handler}") >= 1, handler
            assert logs[name].count("task_interrupted") == len(handlers)
        noted = [event.text for event in lab.store.events.newest(limit=1000) if event.kind == "internal_error"]
        assert len(noted) == len(on_server)
        assert all(text.endswith("the task is resumed from what is stored") for text in noted)
        assert {name: process.pid for name, process in lab.processes.items()} == daemons
