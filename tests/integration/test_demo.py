"""`make demo`'s command, as a stranger's machine runs it: no terminal, no data, no trace left behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from presence import real_data

from fedsim.testing.ports import free_port

# In the background of a script, where tests may run, ^C is ignored by all that is started there.
DEMO = ["env", "--default-signal=INT", Path(sys.executable).with_name("fedsim"), "demo", "--folder"]


def ours(folder: Path) -> list[psutil.Process]:
    """The processes that were started with a configuration in this folder."""
    processes = psutil.process_iter(["cmdline"])
    return [process for process in processes if any(str(folder) in word for word in process.info["cmdline"] or ())]


def test_the_demonstration_trains_a_model_and_leaves_no_process_behind(tmp_path: Path) -> None:
    run = subprocess.run(
        [*DEMO, tmp_path / "demo", "--port", str(port := free_port())],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "FEDSIM_DATA": str(tmp_path / "nothing")},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^Data: (Fashion-MNIST|scikit-learn's digits)", run.stdout)
    assert float(re.search(r"Final accuracy +(\S+)", run.stdout)[1]) > 0.3  # type: ignore[index]
    checkpoint = Path(re.search(r"Checkpoint +(\S+)", run.stdout)[1])  # type: ignore[index]
    assert checkpoint.is_file()
    assert re.search(r"Its digest +[0-9a-f]{64}", run.stdout)
    assert f"http://127.0.0.1:{port}/tasks/1" in run.stdout
    assert ours(tmp_path) == []


CAUGHT = [pytest.param(number, marks=pytest.mark.long) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize("number", [signal.SIGKILL, *CAUGHT])
def test_a_demonstration_that_is_interrupted_ends_everything_that_it_started(tmp_path: Path, number: int) -> None:
    with subprocess.Popen([*DEMO, tmp_path / "demo"], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as demo:
        assert demo.stdout is not None
        assert any(re.search(r"round [1-9]\d* of", line) for line in demo.stdout), "the training never began"
        assert len(ours(tmp_path)) >= 7
        demo.send_signal(number)
        demo.stdout.read()
        assert demo.wait(timeout=30) != 0
    # After SIGKILL no process waits for them: the kernel has signalled them, and they end by themselves.
    assert psutil.wait_procs(ours(tmp_path), timeout=30)[1] == []
    assert ours(tmp_path) == []


@contextmanager
def ending(demo: subprocess.Popen[bytes]) -> Iterator[None]:
    """Interrupt the demonstration also when a test fails, which would otherwise wait for it until its timeout."""
    try:
        yield
    finally:
        if demo.poll() is None:
            demo.send_signal(signal.SIGINT)


def test_on_a_terminal_the_demonstration_continues_serving_until_ctrl_c(tmp_path: Path) -> None:
    """MNIST in FEDSIM_DATA takes precedence over other data."""
    data = real_data("mnist")
    screen, theirs = pty.openpty()
    environment = {**os.environ, "FEDSIM_DATA": str(data.parent), "TERM": "dumb", "COLUMNS": "200"}
    with subprocess.Popen(
        [*DEMO, tmp_path / "demo"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as demo:
        os.close(theirs)
        with os.fdopen(screen, encoding="utf-8", errors="replace") as terminal, ending(demo):
            shown = ""
            while "Ctrl-C ends it" not in shown:
                shown += terminal.readline()
            url, name, password = re.search(r"still answers: (\S+)  \(name (\S+), password (\S+)\)", shown).groups()  # type: ignore[union-attr]
            assert f"Data: MNIST in {data.resolve()}" in shown
            with httpx.Client(base_url=url) as browser:
                csrf = re.search(r'name="csrf" value="([^"]+)"', browser.get("/login").text)[1]  # type: ignore[index]
                answer = browser.post("/login", data={"csrf": csrf, "name": name, "password": password})
                assert answer.is_redirect, answer.text
                assert "Demonstration" in browser.get("/tasks").text
            demo.send_signal(signal.SIGINT)
            assert demo.wait(timeout=30) == 0
    assert ours(tmp_path) == []
