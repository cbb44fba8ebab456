from __future__ import annotations

import itertools
import time

from fedsim.spool.files import FileHeader, FileId, Kind, Role
from fedsim.wire import Identity
from fedsim.wire.protocol.frames import FrameType, HelloHeader, encode
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.transport.stream_connection import StreamConnection

PATIENCE = 30.0


class Flood:
    """A stream that never ends: a handshake, the offer of a body, and then nothing but pings, as fast as one reads."""

    write_waits_for_read = read_waits_for_write = False

    def __init__(self) -> None:
        header = FileHeader(id=FileId(kind=Kind.STOP, task="a" * 32), size=1 << 20, digest="0" * 64)
        self._start = memoryview(
            encode(FrameType.HELLO, HelloHeader(name="web", role=Role.WEB, versions=(1,), max_header_bytes=4096))
            + encode(FrameType.OFFER, header, transfer=1)
        )
        self._pings = itertools.cycle(encode(FrameType.PING))

    def fileno(self) -> int:
        return -1

    def handshake(self) -> bool:
        return True

    def certificate(self) -> bytes | None:
        return None

    def read_into(self, view: memoryview) -> int:
        if self._start:
            count = min(len(view), len(self._start))
            view[:count] = self._start[:count]
            self._start = self._start[count:]
            return count
        view[:] = bytes(itertools.islice(self._pings, len(view)))
        return len(view)

    def write(self, view: memoryview, **_: bool) -> int:
        return len(view)

    def send_file(self, *_: int) -> int:
        raise AssertionError("nothing is sent here")

    def close(self) -> None:
        pass


class Waiting:
    """A file of which nothing has come, and the inbox that takes it."""

    have = 0

    def offer(self, *_: object) -> Waiting:
        return self

    def write(self, _: memoryview) -> None:
        raise AssertionError("no byte of a body comes")

    def finish(self) -> None:
        raise AssertionError("it is never whole")

    def abandon(self, *, keep: bool) -> None:
        pass


def test_who_never_stops_sending_pings_does_not_keep_the_connection_from_looking_at_the_clock() -> None:
    limits = ConnectionLimits(
        max_header_bytes=4096, quiet_seconds=0.2, idle_seconds=900, stall_seconds=900, min_bytes_per_second=1
    )
    connection = StreamConnection(
        Flood(),
        Identity("server", Role.SERVER),
        limits,
        initiator=False,
        judge=lambda _: None,
        welcome=lambda _: None,
        offer_ended=print,
        inbox=Waiting(),
        run=lambda job: job(),
        wake=lambda: None,
    )
    buffer, deadline = memoryview(bytearray(1 << 16)), time.monotonic() + PATIENCE
    while connection.closed is None:
        assert time.monotonic() < deadline, "this goes on for ever"
        connection.handle(buffer)
    assert connection.closed.code == "too_slow"
