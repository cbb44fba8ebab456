"""Processes that hold connections to a receiver open and identify themselves on none of them.

How they behave:

- `silent`: they connect and send nothing;
- `trickle`: a byte now and then of what a peer sends first (a frame, or a TLS handshake);
- `handshake`: the whole first message of a TLS handshake, the same bytes each time: a signature for the receiver,
  nothing for them;
- `churn`: they send it, and close the connection and open another one as soon as the receiver has answered.

With `share` a process uses at most this share of one core.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BEHAVIOURS = ("silent", "trickle", "handshake", "churn")

STRANGERS = """
import contextlib, itertools, selectors, socket, ssl, sys, time

port, number, behaviour, tls, share, address = sys.argv[1:]
port, number, share = int(port), int(number), float(share)
waiting = selectors.DefaultSelector()

first = b"FSIM\\x01\\x01"
if tls == "tls":
    context = ssl.create_default_context()
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="server").do_handshake()
    first = outgoing.read()


def connect():
    with contextlib.suppress(OSError):
        sock = socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(address, 0))
        sock.setblocking(False)
        waiting.register(sock, selectors.EVENT_READ, iter(first))
        if behaviour in ("handshake", "churn"):
            sock.send(first)


def rest():
    behind = (time.process_time() - begun) / share - (time.monotonic() - started)
    if behind > 0:
        time.sleep(behind)


for _ in range(number):
    connect()
print("ready", flush=True)
started, begun = time.monotonic(), time.process_time()
while True:
    for key, _ in waiting.select(0.05):  # closed by the receiver, or answered
        if behaviour == "handshake":
            with contextlib.suppress(OSError):
                if key.fileobj.recv(65536):
                    continue
        waiting.unregister(key.fileobj)
        key.fileobj.close()
        rest()
    if behaviour == "trickle":
        for key in list(waiting.get_map().values()):
            with contextlib.suppress(OSError):
                byte = next(key.data, None)
                if byte is not None:
                    key.fileobj.send(bytes([byte]))
            rest()
    while len(waiting.get_map()) < number:
        connect()
        rest()
    rest()
"""


@contextmanager
def strangers(
    port: int, number: int, behaviour: str, *, tls: bool = False, share: float = 0.2, address: str = "127.0.0.1"
) -> Iterator[None]:
    """A process with this many connections from `address`, which opens again those that the receiver closes."""
    arguments = [str(port), str(number), behaviour, "tls" if tls else "plain", str(share), address]
    with subprocess.Popen([sys.executable, "-c", STRANGERS, *arguments], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()
