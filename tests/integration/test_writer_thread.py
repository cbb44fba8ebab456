"""No daemon waits for its disk in its loop: in a whole task, also with a restart, every fsync is another thread's.

Each daemon runs with an `os.fsync` that notes its thread and the functions that called it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from platform_support import digits_lab

HOOK = """
import os
import sys
import threading

real = os.fsync


def fsync(descriptor):
    frame, callers = sys._getframe(1), []
    while frame is not None:
        callers.append(frame.f_code.co_name)
        frame = frame.f_back
    with open(os.path.join(os.environ["FSYNC_NOTES"], os.path.basename(sys.argv[0])), "a") as notes:
        notes.write(f"{threading.current_thread().name} {' '.join(callers)}\\n")
    real(descriptor)


os.fsync = fsync
"""
IN_A_LOOP = {"run_once", "_handle"}
"""One turn of a daemon's loop; the handling of an event of a connection, which may not block either."""


def test_no_fsync_blocks_the_loop_of_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, notes = tmp_path / "hook", tmp_path / "notes"
    hook.mkdir()
    notes.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    monkeypatch.setenv("PYTHONPATH", str(hook))
    monkeypatch.setenv("FSYNC_NOTES", str(notes))
    with digits_lab(tmp_path / "lab") as lab:
        number = lab.submit(local_epochs=12, num_rounds=4, evaluate_every=2, save_every=2)
        lab.await_round(number, 2)
        for victim in ("server", "node-a"):
            lab.kill(victim)
            lab.start(victim)
        lab.completed(number)
    for daemon in ("fedsim-server", "fedsim-client", "fedsim-receiver"):
        calls = [line.split() for line in (notes / daemon).read_text().splitlines()]
        writers = {thread for thread, *_ in calls}
        assert writers - {"MainThread"}, f"{daemon} has written durably"
        in_a_loop = [call for call in calls if IN_A_LOOP & set(call)]
        assert not in_a_loop, f"{daemon}: {' '.join(in_a_loop[0])}"
