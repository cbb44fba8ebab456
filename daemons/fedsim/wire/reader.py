"""From a stream of bytes to frames. Headers are collected, bounded; the bodies of DATA frames only pass through."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.wire.frames import MAX_HELLO_BYTES, PREFIX, FrameType, Prefix, parse_prefix
from fedsim.wire.stream import Stream


@dataclass(frozen=True)
class Frame:
    """A whole small frame."""

    prefix: Prefix
    header: bytes
    body: bytes


@dataclass(frozen=True)
class Piece:
    """Some bytes of a DATA body, valid until the next read; `offset` is their place in the file."""

    transfer: int
    offset: int
    data: memoryview


class FrameReader:
    """Reads one stream. `max_header_bytes` is that of a HELLO until the handshake has raised it."""

    def __init__(self) -> None:
        self.max_header_bytes = MAX_HELLO_BYTES
        self.ended = False
        self.bytes_read = 0
        self._collected = bytearray(PREFIX.size)
        self._got = 0
        self._prefix: Prefix | None = None
        self._passed = 0

    @property
    def midway(self) -> bool:
        """Whether a frame has begun whose prefix or header is not yet whole."""
        return (self._prefix is None and self._got > 0) or (
            self._prefix is not None and self._prefix.type is not FrameType.DATA
        )

    def read(self, stream: Stream, buffer: memoryview) -> Frame | Piece | None:
        """Read until a small frame is whole, or once into a DATA body.

        Returns:
            What was read; None when there is nothing more to read now, or (`ended`) ever.

        Raises:
            ProtocolError: if it is not a frame.
            OSError: if the connection broke.
        """
        while True:
            if self._prefix is not None and self._prefix.type is FrameType.DATA:
                return self._pass_on(self._prefix, stream, buffer)
            if self._got < len(self._collected):
                count = self._read_into(stream, memoryview(self._collected)[self._got :])
                if not count:
                    return None
                self._got += count
                continue
            if self._prefix is None:
                self._prefix = parse_prefix(self._collected, self.max_header_bytes)
                self._begin(self._prefix.header_size + self._prefix.body_size)
            else:
                prefix, self._prefix = self._prefix, None
                collected = bytes(self._collected)
                self._begin(PREFIX.size)
                return Frame(prefix, collected[: prefix.header_size], collected[prefix.header_size :])

    def _begin(self, size: int) -> None:
        if self._prefix is None or self._prefix.type is not FrameType.DATA:
            self._collected = bytearray(size)
        self._got = 0
        self._passed = 0

    def _pass_on(self, prefix: Prefix, stream: Stream, buffer: memoryview) -> Piece | None:
        left = prefix.body_size - self._passed
        count = self._read_into(stream, buffer[:left])
        if not count:
            return None
        piece = Piece(prefix.transfer, prefix.offset + self._passed, buffer[:count])
        self._passed += count
        if self._passed == prefix.body_size:
            self._prefix = None
            self._begin(PREFIX.size)
        return piece

    def _read_into(self, stream: Stream, view: memoryview) -> int | None:
        count = stream.read_into(view)
        if count == 0:
            self.ended = True
        self.bytes_read += count or 0
        return count
