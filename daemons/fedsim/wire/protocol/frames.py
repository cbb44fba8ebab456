"""The format of frames: a fixed binary prefix, a small JSON header, a body. See PROTOCOL.md."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Annotated, Final, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsim.errors import FedsimError, Refused
from fedsim.problems import problems_text
from fedsim.spool.files import MAX_FILE_BYTES, FileHeader, FileId, NodeName, Role

MAGIC: Final = b"FSIM"
VERSION: Final = 1
PREFIX: Final = struct.Struct("!4sBBHIQII")
INLINE_BYTES: Final = 64 << 10
PIECE_BYTES: Final = 1 << 20
MAX_HELLO_BYTES: Final = 4096
MAX_TRANSFER: Final = 2**32 - 1


class ProtocolError(FedsimError):
    """The other side does not follow the protocol; the connection is closed with `code`."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class FrameType(IntEnum):
    """The type of a frame."""

    HELLO = 1
    OFFER = 2
    ANSWER = 3
    DATA = 4
    ACK = 5
    CANCEL = 6
    PING = 7
    PONG = 8
    BYE = 9


_OF_A_TRANSFER = frozenset({FrameType.OFFER, FrameType.ANSWER, FrameType.DATA, FrameType.ACK, FrameType.CANCEL})
_WITHOUT_HEADER = frozenset({FrameType.DATA, FrameType.CANCEL, FrameType.PING, FrameType.PONG})
_MAX_BODY = {FrameType.OFFER: INLINE_BYTES, FrameType.DATA: PIECE_BYTES}


class Prefix(NamedTuple):
    """The fixed start of every frame. `offset` is where a DATA body belongs in its file."""

    type: FrameType
    transfer: int
    offset: int
    header_size: int
    body_size: int


class _Header(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class HelloHeader(_Header):
    """The handshake, sent by both sides: the identity of the sender, and what it understands."""

    name: NodeName
    role: Role
    versions: Annotated[tuple[int, ...], Field(min_length=1, max_length=16)]
    software: Annotated[str, Field(max_length=64)] = ""
    max_header_bytes: Annotated[int, Field(ge=1024)] = 1024
    accepts_files: bool = False


class Refusal(_Header):
    """A reason: a code for programs, a message for people, and whether a later retry may succeed."""

    code: Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
    message: Annotated[str, Field(max_length=1000)]
    retry: bool = False

    @classmethod
    def of(cls, refused: Refused) -> Refusal:
        """The refusal that an exception represents."""
        return cls(code=refused.code, message=str(refused)[:1000], retry=refused.retry)


class AnswerHeader(_Header):
    """To an OFFER: how many bytes are already there, or that the whole file is stored, or a refusal."""

    have: Annotated[int, Field(ge=0)] = 0
    stored: bool = False
    refused: Refusal | None = None


class AckHeader(_Header):
    """To a whole body: the file is verified, durable and in place, unless `refused`."""

    refused: Refusal | None = None


Header = TypeVar("Header", bound=BaseModel)


def encode(
    kind: FrameType, header: BaseModel | None = None, *, transfer: int = 0, offset: int = 0, body_size: int = 0
) -> bytes:
    """Prefix and header of a frame; a body of `body_size` bytes must follow."""
    text = b"" if header is None else header.model_dump_json(exclude_none=True).encode()
    return PREFIX.pack(MAGIC, VERSION, kind, 0, transfer, offset, len(text), body_size) + text


def room_for_meta(max_header_bytes: int, file_id: FileId) -> int:
    """How many bytes of JSON metadata an OFFER of a file of any size can carry within this header limit."""
    bare = FileHeader(id=file_id, size=MAX_FILE_BYTES, digest="0" * 64)
    return max_header_bytes - len(encode(FrameType.OFFER, bare))


def parse_prefix(data: bytes | bytearray, max_header_bytes: int) -> Prefix:
    """Check the prefix of a frame.

    Raises:
        ProtocolError: `not_fedsim` for foreign bytes, `version` for another version, `bad_frame` for the rest.
    """
    magic, version, number, flags, transfer, offset, header_size, body_size = PREFIX.unpack(data)
    if magic != MAGIC:
        raise ProtocolError("not_fedsim", "this is not a fedsim connection")
    if version != VERSION:
        raise ProtocolError("version", f"protocol version {version} is not supported; this side supports {VERSION}")
    try:
        kind = FrameType(number)
    except ValueError as error:
        raise ProtocolError("bad_frame", f"unknown frame type {number}") from error
    if flags:
        raise ProtocolError("bad_frame", f"the flags {flags:#06x} of a {kind.name} frame are unknown")
    if (kind in _OF_A_TRANSFER) != bool(transfer):
        raise ProtocolError("bad_frame", f"a {kind.name} frame cannot have the transfer {transfer}")
    if offset and kind is not FrameType.DATA:
        raise ProtocolError("bad_frame", f"a {kind.name} frame has no offset")
    most = 0 if kind in _WITHOUT_HEADER else max_header_bytes
    if header_size > most:
        raise ProtocolError("bad_frame", f"a {kind.name} header of {header_size} bytes; at most {most} are accepted")
    most = _MAX_BODY.get(kind, 0)
    if body_size > most:
        raise ProtocolError("bad_frame", f"a {kind.name} body of {body_size} bytes; at most {most} are accepted")
    if kind is FrameType.DATA and not body_size:
        raise ProtocolError("bad_frame", "a DATA frame without bytes")
    return Prefix(kind, transfer, offset, header_size, body_size)


def parse_header(model: type[Header], data: bytes, kind: FrameType) -> Header:
    """Check a JSON header as a `model`; `ProtocolError` says what is wrong with it."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise ProtocolError("bad_header", f"{kind.name}: {problems_of(error)}") from error


def problems_of(error: ValidationError) -> str:
    """The first problems of a header, short enough to be sent."""
    return problems_text(error, 3)[:1000]
