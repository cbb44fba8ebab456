"""Rounds without training in Flower: a SuperLink and SuperNodes as processes, over plain sockets on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from environments import await_port, python_with, version_of
from harness.measure import Options, bench_folder
from harness.results import Row
from rounds import MEGABYTE, rows

from fedsim.testing.ports import free_port

PACKAGE = "flwr"
APP = Path(__file__).parent / "flower"
BARS = {0: 50.0, 100 * MEGABYTE: 4.0, 300 * MEGABYTE: 2.5, 1000 * MEGABYTE: 2.0}
RUN_SECONDS = 900.0


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    python = python_with(PACKAGE)
    name = f"Flower {version_of(python, PACKAGE)}"
    yield from rows(name, lambda parameters, nodes, count: rounds(python, parameters, nodes, count), BARS, options)


def rounds(python: Path, parameters: int, nodes: int, count: int) -> list[float]:
    """Start the platform, run the app, stop the platform; returns the seconds of each round."""
    bin_folder = python.parent
    port = free_port()
    with bench_folder() as folder, ExitStack() as stack:
        (folder / "config.toml").write_text(
            f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
            encoding="utf-8",
        )
        environment = {
            **os.environ,
            "FLWR_HOME": str(folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        shutil.copytree(APP, folder / "app")

        def start(*command: str) -> subprocess.Popen[bytes]:
            log = stack.enter_context((folder / f"{Path(command[0]).name}-{len(command)}.log").open("ab"))
            process = stack.enter_context(
                subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
            )
            stack.callback(process.terminate)
            return process

        link = start(
            str(bin_folder / "flower-superlink"),
            "--insecure",
            "--disable-runtime-dependency-installation",
            *("--host", "127.0.0.1", "--port", str(port)),
        )
        await_port(link, port)
        for number in range(nodes):
            start(
                str(bin_folder / "flower-supernode"),
                "--insecure",
                *("--superlink", f"127.0.0.1:{port}"),
                *("--host", "127.0.0.1", "--port", str(free_port())),
                *("--node-config", f"partition-id={number}"),
            )
        marks = folder / "marks"
        config = f'parameters={parameters} rounds={count} nodes={nodes} marks="{marks}"'
        command = [str(bin_folder / "flwr"), "run", "app", "bench", "--stream", "--run-config", config]
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
        )
        times = [float(line) for line in marks.read_text(encoding="utf-8").split()] if marks.exists() else []
        if len(times) != count + 1:
            raise RuntimeError(
                f"Flower ran {len(times)} of {count + 1} marks: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        return [after - before for before, after in pairwise(times)]
