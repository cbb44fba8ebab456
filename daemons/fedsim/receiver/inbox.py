"""What is taken, from whom, and where it lies. Refused when it is *offered*, where that can be known."""

from __future__ import annotations

import functools
import json
import os
import threading
from typing import Any

import structlog
from blake3 import blake3

from fedsim.config import ReceiverConfig
from fedsim.errors import BadInput, Refused
from fedsim.receiver.contents import check_contents
from fedsim.receiver.counters import Counters
from fedsim.receiver.incoming import Destination, IncomingFile, disk_refusal
from fedsim.receiver.numbers import TaskNumbers
from fedsim.spool.durable import write_bytes
from fedsim.spool.files import JSON_KINDS, PERMITTED, FileHeader, Kind, Role, metadata_path
from fedsim.spool.layout import Metadata, Spool, read_metadata
from fedsim.spool.npy import hash_file
from fedsim.wire import Identity


class SpoolInbox:
    """See fedsim.wire.incoming.Inbox. One for all connections; `config` may be replaced while it works."""

    def __init__(self, config: ReceiverConfig, spool: Spool, counters: Counters) -> None:
        self.config = config
        self._role = Role(config.role)
        self._spool = spool
        self._numbers = TaskNumbers(spool, self._role)
        self._counters = counters
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], IncomingFile] = {}
        self._log = structlog.get_logger()

    def welcome(self, peer: Identity) -> None:
        """Only configured peers, in their configured role; else Refused."""
        known = {item.name: item.role for item in self.config.peers}
        if known.get(peer.name) != peer.role:
            raise Refused("unknown_peer", f"{peer} is not a peer of {self.config.name}; add it to its receiver.yml")

    def offer(self, sender: Identity, header: FileHeader) -> IncomingFile | None:
        """Open the file for writing, or None if it is stored already; raises Refused."""
        try:
            return self._offer(sender, header)
        except OSError as error:
            refused = disk_refusal(error)
            self._count_refusal(sender, header, refused)
            raise refused from error
        except Refused as refused:
            self._count_refusal(sender, header, refused)
            raise

    def _offer(self, sender: Identity, header: FileHeader) -> IncomingFile | None:
        self.welcome(sender)
        if header.id.kind not in PERMITTED.get((sender.role, self._role), frozenset()):
            raise Refused("not_permitted", f"a {self._role} takes no {header.id.kind} from a {sender.role}")
        self._check_size(header)
        key = (sender.name, header.id.model_dump_json())
        with self._lock:
            older = self._open.pop(key, None)
        if older is not None:  # most likely its connection is dead and nobody has noticed yet
            older.supersede()
        destination = self._destination(sender, header)
        if self._is_stored(sender, header, destination):
            self._counters.add("files_already_there")
            return None
        with self._lock:
            self._check_room(header, destination)
        incoming = IncomingFile(
            header,
            sender,
            destination,
            check=lambda path: check_contents(path, header.id, sender.name, self._role),
            ended=functools.partial(self._ended, key),
        )
        with self._lock:
            rival = self._open.get(key)
            self._open[key] = incoming
        if rival is not None:  # two connections offered it at the same moment
            rival.supersede()
        return incoming

    def _check_size(self, header: FileHeader) -> None:
        limits = self.config.limits
        if header.id.kind in JSON_KINDS:
            most = limits.max_json_bytes
        elif header.id.kind is Kind.TESTSET:
            most = limits.max_testset_bytes
        else:
            most = limits.max_parameter_bytes
        if header.size > min(most, limits.max_bytes_in_flight):
            raise Refused("too_large", f"a {header.id.kind} of {header.size} bytes; at most {most} are taken")

    def _destination(self, sender: Identity, header: FileHeader) -> Destination:
        final = self._spool.path(header.id, sender.name)
        key = json.dumps([sender.name, header.id.model_dump_json(), header.digest, header.size])
        partial = self._spool.incoming / f"{blake3(key.encode()).hexdigest()}.part"
        if header.id.kind in JSON_KINDS:
            return Destination(partial, final, None)
        beside = Metadata(sender=sender.name, digest=header.digest, size=header.size, meta=header.meta)
        try:
            metadata = json.dumps(beside.model_dump(), allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise Refused("bad_header", f"its metadata is not plain JSON: {error}") from error
        return Destination(partial, final, metadata)

    def _is_stored(self, sender: Identity, header: FileHeader, destination: Destination) -> bool:
        """Whether exactly this file is in place. Only its metadata may change: a body that is used already may not."""
        final = destination.final
        try:
            if header.id.kind in JSON_KINDS:
                return final.stat().st_size == header.size and hash_file(final) == header.digest
            size = final.stat().st_size
        except FileNotFoundError:
            return False
        try:
            there = read_metadata(final)
        except BadInput:
            final.unlink(missing_ok=True)  # nobody can use it without; it comes again
            return False
        if (there.digest, size) != (header.digest, header.size):
            known = f"{header.id.kind} is here already with the digest {there.digest}"
            raise Refused("conflict", f"{known}; {header.digest} from {sender.name} cannot take its place")
        if destination.metadata is not None and there.meta != header.meta:
            write_bytes(metadata_path(final), destination.metadata)
        return True

    def _check_room(self, header: FileHeader, destination: Destination) -> None:
        """Promise only what there is room for; called with the lock held."""
        limits = self.config.limits
        promised = sum(item.left for item in self._open.values())
        try:
            needed = max(0, header.size - destination.partial.stat().st_size)
        except FileNotFoundError:
            needed = header.size
        if promised + needed > limits.max_bytes_in_flight:
            raise Refused("busy", f"{promised} bytes are on their way already; try again later", retry=True)
        disk = os.statvfs(self._spool.root)
        free = disk.f_bavail * disk.f_frsize - promised
        if free - needed < limits.min_free_bytes:
            message = f"{needed} bytes do not fit: {free} are free, {limits.min_free_bytes} must stay free"
            raise Refused("no_space", f"{message}; make room in {self._spool.root}", retry=True)

    def _ended(self, key: tuple[str, str], incoming: IncomingFile, refused: Refused | None, seconds: float) -> None:
        with self._lock:
            if self._open.get(key) is incoming:
                del self._open[key]
        if refused is None:
            self._counters.add("files_stored")
            self._counters.add("bytes_stored", incoming.header.size)
            log = self._log.debug if incoming.header.id.kind is Kind.HELLO else self._log.info
            log("file_received", **self._fields(incoming.sender, incoming.header), seconds=round(seconds, 3))
        elif refused.code not in {"abandoned", "superseded"}:
            self._count_refusal(incoming.sender, incoming.header, refused)

    def _count_refusal(self, sender: Identity, header: FileHeader, refused: Refused) -> None:
        self._counters.add("files_refused")
        self._counters.add(f"refused_{refused.code}")
        self._log.warning("file_refused", **self._fields(sender, header), code=refused.code, problem=str(refused))

    def _fields(self, sender: Identity, header: FileHeader) -> dict[str, Any]:
        """On a server the node that a line is about is the sender; on a node it is the node itself."""
        told = header.id.model_dump(mode="json", exclude_none=True)
        uid = told.pop("task", None)
        if uid is not None:
            number = self._numbers.of(uid)
            told = {**({} if number is None else {"task": number}), "task_uid": uid, **told}
        about = "node" if sender.role is Role.CLIENT else "sender"
        return {about: sender.name, **told, "size": header.size}
