from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.spool.files import FileHeader, FileId, Kind
from fedsim.wire.protocol.frames import (
    INLINE_BYTES,
    MAGIC,
    PIECE_BYTES,
    PREFIX,
    AnswerHeader,
    FrameType,
    HelloHeader,
    ProtocolError,
    encode,
    parse_header,
    parse_prefix,
)
from fedsim.wire.protocol.parser import Frame, FrameParser, Piece

LIMIT = 4096


def read_all(data: bytes, seed: int = 0) -> list[Frame | tuple[int, int, bytes]]:
    """What a parser finds in bytes that come in small, uneven parts."""
    parser, lengths, view = FrameParser(), random.Random(seed), memoryview(data)
    found: list[Frame | tuple[int, int, bytes]] = []
    while view:
        count = lengths.randint(1, 50)
        found += [
            (item.transfer, item.offset, bytes(item.data)) if isinstance(item, Piece) else item
            for item in parser.feed(view[:count])
        ]
        view = view[count:]
    return found


@given(st.binary(min_size=PREFIX.size, max_size=PREFIX.size))
def test_arbitrary_prefixes_are_refused_or_bounded(data: bytes) -> None:
    try:
        prefix = parse_prefix(data, LIMIT)
    except ProtocolError:
        return
    assert prefix.header_size <= LIMIT
    assert prefix.body_size <= PIECE_BYTES


@given(
    st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(0, 3),
)  # fmt: skip
def test_no_numbers_in_a_prefix_ask_for_more_than_the_bounds(
    kind: int, transfer: int, offset: int, header: int, body: int, flags: int, version: int
) -> None:
    try:
        prefix = parse_prefix(PREFIX.pack(MAGIC, version, kind, flags, transfer, offset, header, body), LIMIT)
    except ProtocolError:
        return
    assert prefix.header_size <= LIMIT
    assert prefix.body_size <= (PIECE_BYTES if prefix.type is FrameType.DATA else INLINE_BYTES)


@given(st.binary(max_size=400), st.integers(0, 1000))
def test_arbitrary_streams_never_crash_the_reader(data: bytes, seed: int) -> None:
    for start in (b"", MAGIC + b"\x01"):
        with suppress(ProtocolError):
            read_all(start + data, seed)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5), st.integers(0, 10_000))
def test_frames_survive_any_cutting_of_the_stream(bodies: list[bytes], seed: int) -> None:
    header = FileHeader(id=FileId(kind=Kind.HELLO), size=5, digest="0" * 64, meta={"x": 1})
    data = b""
    for number, body in enumerate(bodies, 1):
        data += encode(FrameType.OFFER, header, transfer=number, body_size=len(body)) + body
        data += encode(FrameType.DATA, transfer=number, offset=number * 7, body_size=len(body)) + body
        data += encode(FrameType.PING)
    found = read_all(data, seed)
    offers = [item for item in found if isinstance(item, Frame) and item.prefix.type is FrameType.OFFER]
    assert [item.body for item in offers] == bodies
    assert all(FileHeader.model_validate_json(item.header) == header for item in offers)
    for number, body in enumerate(bodies, 1):
        pieces = [item for item in found if isinstance(item, tuple) and item[0] == number]
        assert b"".join(piece[2] for piece in pieces) == body
        assert [piece[1] for piece in pieces] == [
            number * 7 + sum(len(before[2]) for before in pieces[:index]) for index in range(len(pieces))
        ]
    assert sum(isinstance(item, Frame) and item.prefix.type is FrameType.PING for item in found) == len(bodies)


@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_arbitrary_headers_are_understood_or_refused(data: bytes) -> None:
    for model, kind in ((HelloHeader, FrameType.HELLO), (AnswerHeader, FrameType.ANSWER)):
        with suppress(ProtocolError):
            assert isinstance(parse_header(model, data, kind), model)


def test_a_header_from_a_newer_neighbour_is_understood() -> None:
    data = b'{"name": "n", "role": "web", "versions": [1, 2], "max_header_bytes": 5000, "future": {"a": 1}}'
    assert parse_header(HelloHeader, data, FrameType.HELLO).name == "n"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", ".hidden", "a/b", "a\x00b", "a" * 65, "a\n", "..", "名"])
def test_a_name_that_could_be_a_path_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        HelloHeader(name=name, role="web", versions=(1,))


@pytest.mark.parametrize("task", ["../../../etc", "a" * 31, "A" * 32, "a" * 31 + "/", "a" * 32 + "\n"])
def test_a_task_that_could_be_a_path_is_no_task(task: str) -> None:
    with pytest.raises(ValueError, match="task"):
        FileId(kind=Kind.STOP, task=task)
