"""Decides which files are accepted from whom, and where they are stored; refuses them when they are *offered*."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, Final

import structlog

from fedsim.config import ReceiverConfig
from fedsim.errors import BadInput, Refused
from fedsim.forwarding import Forwarding
from fedsim.inbox.counters import Counters
from fedsim.inbox.forwarded_models import ForwardedModels, RelayedFile, Relays, split_forwarding
from fedsim.inbox.incoming_file import Destination, IncomingFile, disk_refusal
from fedsim.inbox.quota import ReceiveQuota
from fedsim.inbox.same_name import SameName
from fedsim.inbox.task_numbers import TaskNumbers
from fedsim.inbox.validation import check_contents, check_metadata
from fedsim.refusal_log import RefusalLog
from fedsim.spool.allowlist import Allowlist, check_wanted
from fedsim.spool.clear import clear_leftovers
from fedsim.spool.files import FileHeader, Role
from fedsim.spool.kinds import KINDS, Kind
from fedsim.spool.layout import Metadata, Spool, read_metadata
from fedsim.spool.lock import FolderLock
from fedsim.spool.npy import hash_file
from fedsim.wire import Identity
from fedsim.wire.transport.expected import ExpectedFile
from fedsim.wire.transport.receiving import Incoming

LOGGED_REFUSALS: Final = 20
"""Lines about refused files of one peer in ten seconds."""


class SpoolInbox:
    """An `Inbox` (see `wire.transport.receiving`) for all connections; `config` may be replaced at any time."""

    def __init__(self, config: ReceiverConfig, spool: Spool, counters: Counters) -> None:
        self.config = config
        self._role = Role(config.role)
        self._spool = spool
        self._numbers = TaskNumbers(spool, self._role)
        self._counters = counters
        self._lock = threading.Lock()
        self._receiving: dict[Path, IncomingFile] = {}
        self.quota = ReceiveQuota(spool.incoming)
        self._hold: FolderLock | None = None
        self._same_name = SameName()
        self.forwarded = ForwardedModels()
        self.relays: Relays | None = None
        self._log = structlog.get_logger()
        self._refusals = RefusalLog(LOGGED_REFUSALS)

    def open(self) -> None:
        """Take the spool for this process and clear old leftovers; `Unavailable` if another process has it."""
        self._hold = FolderLock(self._spool.incoming, "receiver", self._spool.root)
        self.sweep()

    def sweep(self) -> None:
        """Remove partly received files that were not resumed."""
        gone = clear_leftovers(self._spool, self.config.limits.keep_partial_seconds, self.quota.in_use())
        self.quota.scan()
        if gone:
            self._log.info("leftovers_cleared", files=gone)

    def close(self) -> None:
        """Leave the spool to another process."""
        if self._hold is not None:
            self._hold.close()

    def welcome(self, peer: Identity) -> None:
        """Admit a configured peer in its configured role, or a node that the server has named; Refused otherwise."""
        known = {item.name: item.role for item in self.config.peers}
        if known.get(peer.name) != peer.role and not self.forwarded.awaits(peer):
            raise Refused("unknown_peer", f"{peer} is not a peer of {self.config.name}; add it to its receiver.yml")

    def offer(self, sender: Identity, header: FileHeader) -> Incoming | ExpectedFile | None:
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

    def _offer(self, sender: Identity, header: FileHeader) -> Incoming | ExpectedFile | None:
        route = KINDS[header.id.kind].route(sender.role, self._role)
        if route is None or not route.announced:
            self.welcome(sender)
        if route is None:
            raise Refused("not_permitted", f"a {self._role} accepts no {header.id.kind} from a {sender.role}")
        if route.announced:
            self._check_metadata(sender, header)
            return self.forwarded.take(self._spool.path(header.id, sender.name), sender, header)
        header, forwarding = split_forwarding(header)
        allowlist = check_wanted(self._spool, header.id, sender.name)
        self._check_size(header)
        self._check_metadata(sender, header)
        if forwarding is None:
            return self._receive(sender, header, allowlist)
        return self._expect(sender, header, allowlist, forwarding)

    def _check_metadata(self, sender: Identity, header: FileHeader) -> None:
        try:
            check_metadata(header.meta, header.id, sender.role, self._role)
        except BadInput as error:
            raise Refused("bad_metadata", str(error)) from error

    def _expect(
        self, server: Identity, header: FileHeader, allowlist: Allowlist, forwarding: Forwarding
    ) -> Incoming | ExpectedFile | None:
        """Wait for a model that another node sends, if the owner accepts that; otherwise receive it from the server."""
        path = self._spool.path(header.id, server.name)
        follow = forwarding if allowlist.pass_on else None

        def receive(node: str | None) -> Incoming | None:
            try:
                return self._receive(server, header, allowlist, follow, node)
            except OSError as error:
                raise disk_refusal(error) from error

        if forwarding.predecessor is not None and allowlist.accept_forwarded and not path.exists():
            expected = self.forwarded.announce(path, server, header, forwarding, receive)
            if expected is not None:
                return expected
        return receive(None)

    def _receive(
        self,
        sender: Identity,
        header: FileHeader,
        allowlist: Allowlist,
        forwarding: Forwarding | None = None,
        node: str | None = None,
    ) -> Incoming | None:
        """Begin to receive a file of `sender`, which the node of this name sends if it is not None."""
        destination = self._destination(sender, header)

        def check(path: Path) -> None:
            check_contents(path, header.id, sender, self._role, allowlist.layout)
            if header.id.kind is Kind.HELLO:
                self._same_name.check(path, destination.final)

        def ended(incoming: IncomingFile, refused: Refused | None, seconds: float) -> None:
            self._ended(incoming, refused, seconds, node)

        incoming = IncomingFile(header, sender, destination, check=check, ended=ended)
        with incoming.lock:
            self._reserve_path(incoming)
            try:
                begun = self._begin(incoming)
            except (OSError, Refused):
                self._release_path(incoming)
                raise
            if not begun:
                self._release_path(incoming)
        path, received = (destination.partial, incoming.have) if begun else (destination.final, header.size)
        relay = (
            None if forwarding is None or self.relays is None else self.relays.begin(header, path, received, forwarding)
        )
        if not begun:
            self.forwarded.ended(destination.final, stored=True)
            return None
        if node is not None:
            self.forwarded.began(destination.final, incoming)
        return incoming if relay is None and node is None else RelayedFile(incoming, relay, forwarded=node is not None)

    def _reserve_path(self, incoming: IncomingFile) -> None:
        """Reserve the path. At most one transfer targets it, so the check at the start still holds at the rename."""
        path = incoming.destination.final
        while True:
            with self._lock:
                older = self._receiving.setdefault(path, incoming)
            if older is incoming:
                return
            # Most likely its connection is dead, which has not been detected yet. Its end releases the path.
            if older.sender != incoming.sender or not older.supersede():
                kind = incoming.header.id.kind
                raise Refused("busy", f"this {kind} is being received at this moment; offer it again", retry=True)

    def _release_path(self, incoming: IncomingFile) -> None:
        with self._lock:
            if self._receiving.get(incoming.destination.final) is incoming:
                del self._receiving[incoming.destination.final]
        if incoming.claim is not None:
            self.quota.close(incoming.claim)

    def _begin(self, incoming: IncomingFile) -> bool:
        """Open the file for writing; returns False if exactly this file is stored already."""
        sender, header, destination = incoming.sender.name, incoming.header, incoming.destination
        there = self._in_place(sender, header, destination.final)
        if there == header.meta:
            self._counters.add("files_already_there")
            return False
        if there is not None:
            incoming.renew()
            return True
        limits = self.config.limits
        urgent = KINDS[header.id.kind].is_json
        incoming.open(self.quota.claim(sender, destination.partial, header.size, limits, self._share(), urgent=urgent))
        return True

    def _share(self) -> float:
        """The share of all limits that one peer may use: with few peers an equal part each."""
        return max(self.config.limits.max_share_per_peer, 1 / len(self.config.peers))

    def _check_size(self, header: FileHeader) -> None:
        limits = self.config.limits
        most: int = getattr(limits, KINDS[header.id.kind].limit)
        most = min(most, int(self._share() * limits.max_bytes_in_flight))
        if header.size > most:
            raise Refused("too_large", f"a {header.id.kind} of {header.size} bytes; at most {most} are accepted")

    def _destination(self, sender: Identity, header: FileHeader) -> Destination:
        final = self._spool.path(header.id, sender.name)
        partial = self.quota.part(sender.name, header)
        if KINDS[header.id.kind].is_json:
            return Destination(partial, final, None)
        stored = Metadata(sender=sender.name, digest=header.digest, size=header.size, meta=header.meta)
        try:
            metadata = json.dumps(stored.model_dump(), allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise Refused("bad_header", f"its metadata is not plain JSON: {error}") from error
        return Destination(partial, final, metadata)

    def _in_place(self, sender: str, header: FileHeader, final: Path) -> dict[str, Any] | None:
        """The metadata with which exactly this file is in place, None if it is not.

        Only the metadata may change: a body that may have been used already may not.
        """
        try:
            size = final.stat().st_size
            if KINDS[header.id.kind].is_json:  # without metadata
                return header.meta if (hash_file(final), size) == (header.digest, header.size) else None
        except FileNotFoundError:
            return None
        try:
            there = read_metadata(final)
        except BadInput:
            final.unlink(missing_ok=True)  # without metadata it cannot be used; the sender sends it again
            return None
        if (there.digest, size) != (header.digest, header.size):
            known = f"{header.id.kind} is stored already with the digest {there.digest}"
            raise Refused("conflict", f"{known}; {header.digest} from {sender} cannot replace it")
        return there.meta

    def _ended(self, incoming: IncomingFile, refused: Refused | None, seconds: float, node: str | None = None) -> None:
        self._release_path(incoming)
        self.forwarded.ended(incoming.destination.final, stored=refused is None)
        if refused is None:
            self._counters.add("files_stored")
            self._counters.add("bytes_stored", incoming.header.size)
            log = self._log.info if KINDS[incoming.header.id.kind].of_task else self._log.debug
            by = {} if node is None else {"passed_on_by": node}
            log("file_received", **self._fields(incoming.sender, incoming.header), **by, seconds=round(seconds, 3))
        elif refused.code not in {"abandoned", "superseded"}:
            sender = incoming.sender if node is None else Identity(node, Role.CLIENT)
            self._count_refusal(sender, incoming.header, refused)

    def _count_refusal(self, sender: Identity, header: FileHeader, refused: Refused) -> None:
        self._counters.add("files_refused")
        self._counters.add(f"refused_{refused.code}")
        self._refusals.warning(
            sender.name, "file_refused", **self._fields(sender, header), code=refused.code, problem=str(refused)
        )

    def _fields(self, sender: Identity, header: FileHeader) -> dict[str, Any]:
        """The fields of a log line; on a server the node that it concerns is the sender."""
        fields = header.id.model_dump(mode="json", exclude_none=True)
        uid = fields.pop("task", None)
        if uid is not None:
            number = self._numbers.of(uid)
            fields = {**({} if number is None else {"task": number}), "task_uid": uid, **fields}
        about = "node" if sender.role is Role.CLIENT else "sender"
        return {about: sender.name, **fields, "size": header.size}
