"""Finds frames in received bytes. Headers are collected, up to a bound; bodies of DATA frames are passed on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedsim.wire.protocol.frames import MAX_HELLO_BYTES, PREFIX, FrameType, Prefix, parse_prefix


@dataclass(frozen=True)
class Frame:
    """A whole small frame."""

    prefix: Prefix
    header: bytes
    body: bytes


@dataclass(frozen=True)
class Piece:
    """Some bytes of a DATA body, valid until the next item is taken; `offset` is their position in the file."""

    transfer: int
    offset: int
    data: memoryview


class FrameParser:
    """Parses one direction of a connection. `max_header_bytes` is that of a HELLO until the handshake raises it."""

    def __init__(self) -> None:
        self.max_header_bytes = MAX_HELLO_BYTES
        self.bytes_read = 0
        self._collected = bytearray()
        self._prefix: Prefix | None = None
        self._passed = 0

    @property
    def midway(self) -> bool:
        """Whether a frame has begun whose prefix or header is not complete yet."""
        if self._prefix is None:
            return bool(self._collected)
        return self._prefix.type is not FrameType.DATA

    def feed(self, data: memoryview) -> Iterator[Frame | Piece]:
        """The frames and pieces that these bytes complete, in order.

        Raises:
            ProtocolError: the bytes are not a frame.
        """
        self.bytes_read += len(data)
        while data:
            if self._prefix is not None and self._prefix.type is FrameType.DATA:
                piece = self._pass_on(self._prefix, data)
                data = data[len(piece.data) :]
                yield piece
                continue
            missing = self._wanted() - len(self._collected)
            self._collected += data[:missing]
            data = data[missing:]
            if len(self._collected) < self._wanted():
                return
            if self._prefix is None:
                self._prefix = parse_prefix(self._collected, self.max_header_bytes)
                self._collected = bytearray()
            if self._prefix.type is not FrameType.DATA and len(self._collected) == self._wanted():
                prefix, content = self._prefix, bytes(self._collected)
                self._prefix, self._collected = None, bytearray()
                yield Frame(prefix, content[: prefix.header_size], content[prefix.header_size :])

    def _wanted(self) -> int:
        return PREFIX.size if self._prefix is None else self._prefix.header_size + self._prefix.body_size

    def _pass_on(self, prefix: Prefix, data: memoryview) -> Piece:
        part = data[: prefix.body_size - self._passed]
        piece = Piece(prefix.transfer, prefix.offset + self._passed, part)
        self._passed += len(part)
        if self._passed == prefix.body_size:
            self._prefix = None
            self._passed = 0
        return piece
