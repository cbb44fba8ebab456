"""A journal for tests: a datagram socket where processes in a mount namespace of their own look for journald."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from presence import missing

_ENTER = """
mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/journal && mount --bind "$0" /run/systemd/journal && exec "$@"
"""

Entry = dict[str, str]


def entry_of(datagram: bytes) -> Entry:
    """The fields of one entry in journald's native protocol."""
    fields = {}
    while datagram:
        line, _, datagram = datagram.partition(b"\n")
        name, simple, value = line.partition(b"=")
        if not simple:
            size = int.from_bytes(datagram[:8], "little")
            value, datagram = datagram[8 : 8 + size], datagram[9 + size :]
        fields[name.decode()] = value.decode()
    return fields


class Journal:
    """Entries in the order in which they came."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[Entry] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "socket"))

    def close(self) -> None:
        self._socket.close()

    @contextmanager
    def running(self, command: Sequence[str | Path], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process whose standard error is the journal, according to the variable that systemd would set."""
        reading, writing = os.pipe()
        there = os.fstat(writing)
        process = subprocess.Popen(
            ["/usr/bin/unshare", "--mount", "/bin/sh", "-ec", _ENTER, str(self.folder), *command],
            stderr=writing,
            env={**os.environ, "JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}", **environment},
        )
        os.close(writing)
        try:
            with process, os.fdopen(reading, "rb") as self.printed:
                yield process
                process.terminate()
        finally:
            process.kill()

    def await_entry(self, wanted: Callable[[Entry], bool], *, seconds: float = 60) -> Entry:
        """The first entry that is wanted, perhaps one that has come already."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            while True:
                for entry in self.entries:
                    if wanted(entry):
                        return entry
                assert selector.select(max(0.0, deadline - time.monotonic())), f"not among {self.entries}"
                self.entries.append(entry_of(self._socket.recv(1 << 20)))

    def await_event(self, name: str, **fields: str) -> Entry:
        """The first event of this name with these fields."""
        told = {"FEDSIM_EVENT": name, **{f"FEDSIM_{key.upper()}": value for key, value in fields.items()}}
        return self.await_entry(lambda entry: told.items() <= entry.items())


@contextmanager
def own_journal(folder: Path) -> Iterator[Journal]:
    if os.geteuid() != 0:
        missing("a mount namespace of its own must be made: run as root")
    journal = Journal(folder)
    try:
        yield journal
    finally:
        journal.close()
