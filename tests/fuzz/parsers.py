"""What fuzzers call: everything that reads bytes of others, with the errors that it may end with.

Each function takes any bytes. It returns, or raises an exception that is a fault: one that its caller does not expect.
`SEEDS` are valid inputs, from which a fuzzer makes others.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from fedsim.cli.settings_file import parse_settings_text
from fedsim.config import ClientConfig, ReceiverConfig, ServerConfig, WebConfig, load_config
from fedsim.errors import BadInput, ConfigError, Refused
from fedsim.inbox.validation import check_metadata
from fedsim.messages import read_message
from fedsim.settings import TaskSettings
from fedsim.spool.files import FileHeader, FileId, Role
from fedsim.spool.kinds import KINDS, JsonBody, Kind
from fedsim.spool.npy import parse_header as parse_npy
from fedsim.wire import Identity
from fedsim.wire.protocol.connection import ProtocolConnection
from fedsim.wire.protocol.events import BodyReceived, FileOffered, HelloReceived
from fedsim.wire.protocol.frames import (
    PREFIX,
    AckHeader,
    AnswerHeader,
    FrameType,
    HelloHeader,
    ProtocolError,
    Refusal,
    encode,
    parse_header,
    parse_prefix,
)
from fedsim.wire.protocol.limits import ConnectionLimits
from fedsim.wire.protocol.outgoing import FrameBytes

_CONFIGS: Final = (ClientConfig, ReceiverConfig, ServerConfig, WebConfig)
_MESSAGES: Final = sorted(
    {route.body.model for spec in KINDS.values() for route in spec.routes if isinstance(route.body, JsonBody)},
    key=lambda model: model.__name__,
)
_HEADERS: Final = (HelloHeader, AnswerHeader, AckHeader, Refusal)
_LIMITS: Final = ConnectionLimits(
    max_header_bytes=1 << 16, quiet_seconds=1e9, idle_seconds=1e9, stall_seconds=1e9, min_bytes_per_second=1
)
_SERVER: Final = Identity("server", Role.SERVER)


def frames(data: bytes) -> None:
    """A connection that receives the bytes, in pieces as the first byte says, and answers what it is offered."""
    size = 1 + (data[0] if data else 0) * 16
    connection = ProtocolConnection(_SERVER, _LIMITS, initiator=False, now=0.0)
    with suppress(ProtocolError, Refused):
        for start in range(1, len(data), size):
            for event in connection.receive(memoryview(data[start : start + size]), float(start)):
                match event:
                    case HelloReceived():
                        connection.accept()
                    case FileOffered() if connection.answer(event.transfer, 0):
                        connection.acknowledge(event.transfer, float(start))
                    case BodyReceived(complete=True):
                        connection.acknowledge(event.transfer, float(start))
            while (output := connection.next_output()) is not None:
                connection.sent(len(output.data) if isinstance(output, FrameBytes) else output.count)
            connection.check_time(float(start))
            if connection.closed is not None:
                return


def headers(data: bytes) -> None:
    """Prefix and JSON headers of frames, and what is offered as the metadata of a file."""
    with suppress(ProtocolError):
        parse_prefix(data[: PREFIX.size].ljust(PREFIX.size, b"\0"), 1 << 16)
    for model in _HEADERS:
        with suppress(ProtocolError):
            parse_header(model, data, FrameType.HELLO)
    with suppress(ValueError):
        FileHeader.model_validate_json(data)
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(meta, dict):
        with suppress(BadInput):
            check_metadata(meta, FileId(kind=Kind.GLOBALPARAM, task="0" * 32, round=1), Role.SERVER, Role.CLIENT)


def npy(data: bytes) -> None:
    """The prefix of an array file."""
    with suppress(BadInput):
        header = parse_npy(data)
        assert header.file_size >= header.data_offset >= 0


def messages(data: bytes) -> None:
    """Each kind of message, and the settings of a task."""
    for model in _MESSAGES:
        with suppress(BadInput):
            read_message(model, data, "it")
    with suppress(ValueError):
        TaskSettings.model_validate_json(data)


def yaml_files(data: bytes) -> None:
    """One of the configuration files, by the input's length, and a file with the settings of a task."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with suppress(ConfigError):
            load_config(Path(file.name), _CONFIGS[len(data) % len(_CONFIGS)])
    with suppress(BadInput, UnicodeDecodeError):
        parse_settings_text(data.decode("utf-8-sig"))


def _seeds_of_frames() -> list[bytes]:
    hello = encode(
        FrameType.HELLO,
        HelloHeader(name="node-a", role=Role.CLIENT, versions=(1,), software="0.2.0", max_header_bytes=65536),
    )
    file_id = FileId(kind=Kind.GLOBALPARAM, task="0" * 32, round=1)
    offer = encode(FrameType.OFFER, FileHeader(id=file_id, size=1 << 20, digest="0" * 64), transfer=1)
    data = encode(FrameType.DATA, transfer=1, body_size=64) + bytes(64)
    ping, cancel = encode(FrameType.PING), encode(FrameType.CANCEL, transfer=1)
    bye = encode(FrameType.BYE, Refusal(code="bad_frame", message="x"))
    return [b"\xff" + hello + offer + data + ping + cancel + bye, b"\x01" + hello + ping, b"\x05" + hello + offer]


def _seed_of_npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((3, 4), np.float32))
    return file.getvalue()


_CLIENT: Final = b"""name: node-a
server: {address: 192.0.2.1, port: 9001}
spool: /tmp/a
data: /tmp/a/data
datasets:
  - {name: x, path: x.csv, label_column: y, labels: {1: 0, no: 1}, missing_values: ["?", 1e9]}
institution: {min_examples: 500, allowed_users: [ada], strategies: [fedavg]}
"""
_SETTINGS: Final = b"dataset: mnist\nnum_rounds: 1e1\nstrategy: fedprox\nstrategy_options: {mu: 0.01}\n"

TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "frames": frames,
    "headers": headers,
    "npy": npy,
    "messages": messages,
    "yaml_files": yaml_files,
}
SEEDS: Final[dict[str, Callable[[], list[bytes]]]] = {
    "frames": _seeds_of_frames,
    "headers": lambda: [frame[1:] for frame in _seeds_of_frames()] + [b'{"refused": {"code": "a", "message": "b"}}'],
    "npy": lambda: [_seed_of_npy()],
    "messages": lambda: [
        TaskSettings.model_validate({}).model_dump_json().encode(),
        b'{"task": "00000000000000000000000000000000", "reason": "over"}',
        b'{"node": "node-a", "tasks": [], "datasets": []}',
    ],
    "yaml_files": lambda: [_CLIENT, _SETTINGS, b"{dataset: mnist, num_rounds: 3}", b"? {a: b}\n: c\n", b"<<: [1]\n"],
}
