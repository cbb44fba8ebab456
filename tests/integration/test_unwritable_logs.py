"""Daemons whose log cannot be written: a closed pipe or terminal, a full disk."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

RECEIVER = (sys.executable, "-c", "import sys; from fedsim.receiver.main import main; sys.exit(main())")


def closed_pipe() -> int:
    """The writing end of a pipe that nothing reads."""
    reads, writes = os.pipe()
    os.close(reads)
    return writes


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def closed_terminal() -> int:
    controller, terminal = pty.openpty()
    os.close(controller)
    return terminal


@contextmanager
def receiver(folder: Path, stderr: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """A receiver with this standard error, or with none; it is ready when the block begins."""
    config = {
        "name": "node-a",
        "role": "client",
        "listen": {"address": "127.0.0.1", "port": 0},
        "insecure_plaintext": True,
        "spool": str(folder / "spool"),
        "peers": [{"name": "server", "role": "server"}],
    }
    path = folder / "receiver.yml"
    path.write_text(yaml.safe_dump(config))
    command = [*RECEIVER, "--config", str(path)]
    if stderr is None:
        command = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *command]
    process = subprocess.Popen(command, stderr=stderr)
    incoming = folder / "spool" / ".incoming"
    try:
        while not incoming.exists():
            assert process.poll() is None, f"ended with {process.returncode}"
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("stream", [closed_pipe, full_disk, closed_terminal, None])
def test_a_daemon_whose_log_cannot_be_written_runs_on(tmp_path: Path, stream: Callable[[], int] | None) -> None:
    descriptor = None if stream is None else stream()
    with receiver(tmp_path, descriptor) as process:
        process.send_signal(signal.SIGHUP)  # logs a line
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.terminate()
        assert process.wait(20) == 0
    if descriptor is not None:
        os.close(descriptor)
