"""The floor of moving files: sockets, files and a digest with nothing around them, between real processes on loopback.

A receiver is a process that takes one file after another: recv_into → (blake3) → write → (fsync). A plain file is sent
with sendfile; over TLS 1.3 it is read and sent in blocks, as no socket of Python's `ssl` can do otherwise.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedsim.config import TlsConfig

BLOCK_BYTES = 1 << 18
RECEIVER = """
import os, socket, ssl, sys
from blake3 import blake3

context = None
if len(sys.argv) > 1:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(*sys.argv[1:])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
buffer = memoryview(bytearray(1 << 20))
while True:
    sock, _ = listener.accept()
    if context:
        sock = context.wrap_socket(sock, server_side=True)
    name, size, how = sock.recv(4096).decode().split("|")
    sock.sendall(b"k")
    hasher = blake3()
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    left = int(size)
    while left:
        count = sock.recv_into(buffer)
        if "hash" in how:
            hasher.update(buffer[:count])
        os.write(file, buffer[:count])
        left -= count
    if "fsync" in how:
        os.fsync(file)
    os.close(file)
    sock.sendall(hasher.digest())
    sock.close()
"""


@dataclass(frozen=True)
class Stream:
    """A file that a receiver, by its number, writes to `target`."""

    receiver: int
    source: Path
    target: Path


class BareReceivers:
    """This many receiver processes; `tls` is the certificate that they show, and what senders believe."""

    def __init__(self, count: int = 1, *, tls: TlsConfig | None = None) -> None:
        self.count = count
        self._tls = tls
        self._stack = ExitStack()
        self._ports: list[int] = []
        self._context: ssl.SSLContext | None = None

    def __enter__(self) -> Self:
        certificate = [] if self._tls is None else [str(self._tls.certificate), str(self._tls.key)]
        if self._tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_3
            self._context.check_hostname = False  # both ends are of this program
            self._context.load_verify_locations(self._tls.authority)
        command = [sys.executable, "-c", RECEIVER, *certificate]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(self.count)]
        for process in processes:
            self._stack.enter_context(process)
            self._stack.callback(process.kill)
        for process in processes:
            assert process.stdout is not None
            self._ports.append(int(process.stdout.readline()))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def seconds(self, streams: Sequence[Stream], *, digest: bool = False, fsync: bool = False) -> float:
        """How long all streams take at once, until the last receiver has answered; the files are removed after it."""
        how = ("hash" if digest else "") + ("fsync" if fsync else "")
        with ThreadPoolExecutor(len(streams)) as pool:
            started = time.perf_counter()
            for done in [pool.submit(self._send, stream, how) for stream in streams]:
                done.result()
            seconds = time.perf_counter() - started
        for stream in streams:
            stream.target.unlink()
        return seconds

    def _send(self, stream: Stream, how: str) -> None:
        with (
            socket.create_connection(("127.0.0.1", self._ports[stream.receiver])) as plain,
            stream.source.open("rb") as file,
        ):
            sock = plain if self._context is None else self._context.wrap_socket(plain)
            sock.sendall(f"{stream.target}|{stream.source.stat().st_size}|{how}".encode())
            sock.recv(1)
            if self._context is None:
                sock.sendfile(file)
            else:
                buffer = memoryview(bytearray(BLOCK_BYTES))
                while count := file.readinto(buffer):
                    sock.sendall(buffer[:count])
            sock.recv(64)
            sock.close()
