"""Transfers measured beside their floor: `python tests/bench/bench_transfer.py [MiB] [repetitions]`.

The floor is a bare sendfile → recv_into → write between two processes, over loopback, of the same file, in the same run
and in turn with fedsim: a receiver process of its own, and a sender. fsync is what makes a file survive a power cut;
the floor is measured with and without it. Then the time of an almost empty file over a connection that stands.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from fedsim.spool.allowlist import want
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.layout import Spool
from fedsim.spool.npy import write_vector
from fedsim.testing.ports import free_port
from fedsim.wire import Identity, Peer, Sender

MIB = 1 << 20
TASK = "a" * 32
FLOOR = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
buffer = memoryview(bytearray(1 << 20))
while True:
    sock, _ = listener.accept()
    name, _, how = sock.recv(4096).decode().partition("|")
    sock.sendall(b"k")
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    while count := sock.recv_into(buffer):
        os.write(file, buffer[:count])
    if how == "fsync":
        os.fsync(file)
    os.close(file)
    sock.sendall(b"k")
    sock.close()
"""


def floor_seconds(port: int, source: Path, target: Path, how: str) -> float:
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as sock, source.open("rb") as file:
        sock.sendall(f"{target}|{how}".encode())
        sock.recv(1)
        sock.sendfile(file)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
    seconds = time.perf_counter() - started
    target.unlink()
    return seconds


def start_receiver(folder: Path) -> tuple[subprocess.Popen[str], int]:
    port = free_port()
    want(Spool(folder / "s").open(), TASK, {Kind.GLOBALPARAM: None})
    config = folder / "receiver.yml"
    peers = [{"name": "server", "role": "server"}]
    given = {"name": "node-1", "role": "client", "listen": {"port": port}, "spool": str(folder / "s"), "peers": peers}
    config.write_text(yaml.safe_dump(given))
    code = "import sys; from fedsim.receiver.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--config", str(config)], stderr=subprocess.DEVNULL, text=True
    )
    return process, port


def rates(size: int, seconds: list[float]) -> tuple[str, str]:
    each = [size / MIB / value for value in seconds]
    return f"{statistics.median(each):.0f}", " ".join(f"{value:.0f}" for value in each)


def measure(folder: Path, mebibytes: int, repetitions: int) -> Table:
    source = folder / "m.npy"
    digest = write_vector(source, np.random.default_rng(0).random(mebibytes * MIB // 4, dtype=np.float32))
    size = source.stat().st_size
    receiver, port = start_receiver(folder)
    floor_port = free_port()
    floor = subprocess.Popen([sys.executable, "-c", FLOOR, str(floor_port)], stdout=subprocess.PIPE, text=True)
    assert floor.stdout is not None
    floor.stdout.readline()
    sender = Sender(Identity("server", Role.SERVER)).open()
    peer = Peer("node-1", "127.0.0.1", port)
    try:
        sender.send_and_wait(peer, *_stop(0), give_up_after=30)
        memory = psutil.Process(receiver.pid).memory_info().rss

        def fedsim(number: int) -> float:
            file_id = FileId(kind=Kind.GLOBALPARAM, task=TASK, round=number)
            outcome = sender.send_and_wait(peer, file_id, source, digest=digest, give_up_after=300)
            shutil.rmtree(folder / "s" / "globalparam" / TASK)
            return outcome.seconds

        ways: dict[str, Callable[[int], float]] = {
            "floor: sendfile → recv → write": lambda _: floor_seconds(floor_port, source, folder / "f", ""),
            "floor and fsync": lambda _: floor_seconds(floor_port, source, folder / "f", "fsync"),
            "fedsim: blake3, NaN check, fsync, rename": fedsim,
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(repetitions + 1):
            for name, way in ways.items():
                seconds = way(number)
                if number:  # the first round warms the page cache
                    found[name].append(seconds)
        grown = psutil.Process(receiver.pid).memory_info().rss - memory
        small = [sender.send_and_wait(peer, *_stop(number), give_up_after=30).seconds for number in range(1, 301)]
    finally:
        sender.close()
        for process in (receiver, floor):
            process.terminate()
            process.communicate()
    table = Table(title=f"{mebibytes} MiB over loopback, {repetitions} runs in turn")
    for column in ("way", "median MiB/s", "each"):
        table.add_column(column)
    for name, seconds_of in found.items():
        table.add_row(name, *rates(size, seconds_of))
    small.sort()
    table.add_row("a 43-byte file, durable, p50 / p95 in ms", f"{small[150] * 1e3:.2f}", f"{small[285] * 1e3:.2f}")
    table.add_row("receiver's memory grew by MiB", f"{grown / MIB:.1f}", "")
    return table


def _stop(number: int) -> tuple[FileId, bytes]:
    task = f"{number:032x}"
    return FileId(kind=Kind.STOP, task=task), b'{"task":"%s"}' % task.encode()


def main() -> None:
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    repetitions = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        Console(width=120).print(measure(Path(folder), mebibytes, repetitions))


if __name__ == "__main__":
    main()
