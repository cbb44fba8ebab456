"""What tests of transfers share: a receiver, files, a proxy that cuts, a peer that speaks raw frames."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from blake3 import blake3

from fedsim import __version__
from fedsim.config import ReceiverConfig
from fedsim.messages import EngineInfo
from fedsim.messages import Hello as HelloMessage
from fedsim.receiver.service import Receiver
from fedsim.spool.allowlist import want
from fedsim.spool.files import FileHeader, FileId, Kind, Role
from fedsim.spool.format import FORMAT_FILE
from fedsim.spool.kinds import ON_DEMAND
from fedsim.spool.layout import WANTED, Spool
from fedsim.spool.npy import write_vector
from fedsim.wire import Identity, Peer
from fedsim.wire.protocol.frames import MAGIC, PREFIX, VERSION, FrameType, HelloHeader, encode
from fedsim.wire.sender import Outcome, Sender

TASK, OTHER = "5" * 32, "6" * 32
SERVER = Identity("server", Role.SERVER)
NODE = Identity("node-1", Role.CLIENT)
WEB = Identity("web", Role.WEB)
HELLO = FileId(kind=Kind.HELLO)
PATIENCE = 30.0
RECEIVER = (sys.executable, "-c", "import sys; from fedsim.receiver.main import main; sys.exit(main())")


def global_id(round_number: int = 1, task: str = TASK) -> FileId:
    return FileId(kind=Kind.GLOBALPARAM, task=task, round=round_number)


def local_id(chunk: int = 0, round_number: int = 1) -> FileId:
    return FileId(kind=Kind.LOCALPARAM, task=TASK, round=round_number, chunk=chunk)


def meta_of(file_id: FileId) -> dict[str, Any]:
    """The least metadata with which a file of this kind is accepted."""
    return {"base_round": file_id.round, "num_examples": 1} if file_id.kind is Kind.LOCALPARAM else {}


def stop_id(task: str = TASK) -> FileId:
    return FileId(kind=Kind.STOP, task=task)


def stop_body(task: str = TASK) -> bytes:
    return json.dumps({"task": task, "reason": "enough"}).encode()


def hello_body(node: str, sent_at: float = 1.0) -> bytes:
    told = HelloMessage(node=node, version=__version__, sent_at=sent_at, clients=3, engine=EngineInfo())
    return told.model_dump_json().encode()


def header_of(body: bytes, file_id: FileId | None = None) -> FileHeader:
    known = file_id or global_id()
    return FileHeader(id=known, size=len(body), digest=blake3(body).hexdigest(), meta=meta_of(known))


def node_config(folder: Path, **changes: Any) -> ReceiverConfig:
    """A node's receiver on a free port, that takes files from the server."""
    limits = {"min_free_bytes": 0, **changes.pop("limits", {})}
    given: dict[str, Any] = {
        "name": "node-1",
        "role": "client",
        "listen": {"port": 0},
        "spool": folder / "spool",
        "peers": [{"name": "server", "role": "server"}],
        "limits": limits,
    }
    return ReceiverConfig.model_validate(given | changes)


def server_config(folder: Path, **changes: Any) -> ReceiverConfig:
    """The server's receiver on a free port, that takes files from the web and eight nodes."""
    nodes = [{"name": f"node-{number}", "role": "client"} for number in range(1, 9)]
    peers = [{"name": "web", "role": "web"}, *nodes]
    return node_config(folder, **({"name": "server", "role": "server", "peers": peers} | changes))


def write_config(folder: Path, config: ReceiverConfig) -> Path:
    path = folder / "receiver.yml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    return path


def want_all(spool: Spool, task: str = TASK) -> None:
    """As if this host's daemon waited for everything of a task."""
    want(spool, task, dict.fromkeys(ON_DEMAND))


@contextmanager
def receiving(config: ReceiverConfig, expect: Callable[[Spool], None] = want_all) -> Iterator[Receiver]:
    """A receiver whose daemon waits for what `expect` records: everything of TASK."""
    receiver = Receiver(config)
    expect(receiver.spool)
    receiver.start()
    try:
        yield receiver
        assert receiver.reactor.failure is None
    finally:
        receiver.close()


def peer_of(receiver: Receiver, port: int | None = None) -> Peer:
    return Peer(receiver.me.name, "127.0.0.1", port or receiver.port)


def model_file(path: Path, count: int, seed: int = 0) -> str:
    """Write a parameter file of `count` float32; returns its digest."""
    return write_vector(path, np.random.default_rng(seed).random(count, dtype=np.float32))


def vector_bytes(tmp_path: Path, count: int, seed: int = 0) -> bytes:
    model_file(tmp_path / "v.npy", count, seed)
    return (tmp_path / "v.npy").read_bytes()


class Outcomes:
    """Collects outcomes and lets a test wait for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.all: list[Outcome] = []

    def __call__(self, outcome: Outcome) -> None:
        with self._changed:
            self.all.append(outcome)
            self._changed.notify_all()

    def wait(self, count: int, seconds: float = PATIENCE) -> list[Outcome]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= count, seconds), f"only {self.all}"
            return list(self.all)


def files_in(spool: Path) -> list[str]:
    """Everything that was received into a spool, relative."""
    paths = [path.relative_to(spool) for path in spool.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in paths if WANTED not in path.parts and path.name != FORMAT_FILE)


class Proxy:
    """A TCP proxy. `limits` says, for each connection in turn, after how many bytes to the receiver it is cut.

    None lets a connection live. With `at_cut` the cut waits until that function returns. `carried` are the bytes that
    each connection brought to the receiver.
    """

    def __init__(self, port: int, limits: Iterator[int | None], at_cut: Callable[[], None] | None = None) -> None:
        self._target = port
        self._limits = limits
        self._at_cut = at_cut
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.carried: list[int] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self._sockets += [near, far]
            self.carried.append(0)
            self._start(self._pump, near, far, next(self._limits, None), len(self.carried) - 1)
            self._start(self._pump, far, near, None, None)

    def _pump(self, source: socket.socket, target: socket.socket, left: int | None, counted: int | None) -> None:
        try:
            while data := source.recv(65536 if left is None else min(65536, left)):
                target.sendall(data)
                if counted is not None:
                    self.carried[counted] += len(data)
                if left is not None:
                    left -= len(data)
                    if not left:
                        if self._at_cut is not None:
                            self._at_cut()
                        break
        except OSError:
            pass
        for sock in (source, target):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()


class RawPeer:
    """Speaks frames by hand, also wrong ones."""

    def __init__(self, port: int, identity: Identity = SERVER, *, hello: bool = True) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.settimeout(PATIENCE)
        if hello:
            me = HelloHeader(name=identity.name, role=identity.role, versions=(1,), max_header_bytes=4096)
            self.send(encode(FrameType.HELLO, me))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def offer(self, header: FileHeader | dict[str, Any], body: bytes = b"", transfer: int = 1) -> None:
        text = header.model_dump_json() if isinstance(header, FileHeader) else json.dumps(header)
        prefix = PREFIX.pack(MAGIC, VERSION, FrameType.OFFER, 0, transfer, 0, len(text.encode()), len(body))
        self.send(prefix + text.encode() + body)

    def data(self, offset: int, body: bytes, transfer: int = 1) -> None:
        self.send(encode(FrameType.DATA, transfer=transfer, offset=offset, body_size=len(body)) + body)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def receive(self) -> tuple[FrameType, dict[str, Any]]:
        """The next frame; EOFError when the other side has closed."""
        prefix = struct.unpack("!4sBBHIQII", self._exactly(PREFIX.size))
        text = self._exactly(prefix[6])
        return FrameType(prefix[2]), json.loads(text) if text else {}

    def expect(self, kind: FrameType) -> dict[str, Any]:
        found, header = self.receive()
        assert found is kind, f"{found.name} {header}"
        return header

    def expect_end(self, code: str) -> None:
        """A BYE with this code, then the end."""
        assert self.expect(FrameType.BYE)["code"] == code
        try:
            rest = self.sock.recv(1)
        except ConnectionResetError:
            rest = b""
        assert rest == b""


def send_now(receiver: Receiver, identity: Identity, file_id: FileId, source: Path | bytes, **more: Any) -> Outcome:
    """One file over a connection of its own, with the metadata of its kind."""
    usual = {"give_up_after": PATIENCE, "meta": meta_of(file_id)}
    with Sender(identity) as sender:
        outcomes = Outcomes()
        sender.send(peer_of(receiver), file_id, source, on_done=outcomes, **(usual | more))
        return outcomes.wait(1)[0]
