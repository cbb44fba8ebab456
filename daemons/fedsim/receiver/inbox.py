"""What is taken, from whom, and where it lies. Refused when it is *offered*, where that can be known."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import structlog

from fedsim.config import ReceiverConfig
from fedsim.errors import BadInput, Refused
from fedsim.receiver.counters import Counters
from fedsim.receiver.incoming import Destination, IncomingFile, disk_refusal
from fedsim.receiver.numbers import TaskNumbers
from fedsim.receiver.quota import QuotaLedger
from fedsim.receiver.validation import check_contents
from fedsim.spool.allowlist import check_wanted
from fedsim.spool.files import FileHeader, Role
from fedsim.spool.kinds import KINDS
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
        self._on_the_way: dict[Path, IncomingFile] = {}
        self.ledger = QuotaLedger(spool.incoming)
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
        if KINDS[header.id.kind].route(sender.role, self._role) is None:
            raise Refused("not_permitted", f"a {self._role} accepts no {header.id.kind} from a {sender.role}")
        allowlist = check_wanted(self._spool, header.id, sender.name)
        self._check_size(header)
        incoming = IncomingFile(
            header,
            sender,
            self._destination(sender, header),
            check=lambda path: check_contents(path, header.id, sender, self._role, allowlist.num_parameters),
            ended=self._ended,
        )
        with incoming.lock:
            self._take_place(incoming)
            try:
                if not self._begin(incoming):
                    self._leave_place(incoming)
                    return None
            except (OSError, Refused):
                self._leave_place(incoming)
                raise
        return incoming

    def _take_place(self, incoming: IncomingFile) -> None:
        """One file at a time is on its way to a place: what was found in it then stays true until the end."""
        place = incoming.destination.final
        while True:
            with self._lock:
                older = self._on_the_way.setdefault(place, incoming)
            if older is incoming:
                return
            # Most likely its connection is dead and nobody has noticed yet. Its end makes the place free.
            if older.sender != incoming.sender or not older.supersede():
                kind = incoming.header.id.kind
                raise Refused("busy", f"this {kind} is being taken in at this moment; ask again", retry=True)

    def _leave_place(self, incoming: IncomingFile) -> None:
        with self._lock:
            if self._on_the_way.get(incoming.destination.final) is incoming:
                del self._on_the_way[incoming.destination.final]
        if incoming.claim is not None:
            self.ledger.close(incoming.claim)

    def _begin(self, incoming: IncomingFile) -> bool:
        """Open the file for writing if it is not stored exactly like this already; whether anything is to be done."""
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
        incoming.open(self.ledger.claim(sender, destination.partial, header.size, limits, self._share(), urgent=urgent))
        return True

    def _share(self) -> float:
        """What one peer may hold of everything: where there are few, nobody gains from what they leave free."""
        return max(self.config.limits.max_share_per_peer, 1 / len(self.config.peers))

    def _check_size(self, header: FileHeader) -> None:
        limits = self.config.limits
        most: int = getattr(limits, KINDS[header.id.kind].limit)
        most = min(most, int(self._share() * limits.max_bytes_in_flight))
        if header.size > most:
            raise Refused("too_large", f"a {header.id.kind} of {header.size} bytes; at most {most} are accepted")

    def _destination(self, sender: Identity, header: FileHeader) -> Destination:
        final = self._spool.path(header.id, sender.name)
        partial = self.ledger.part(sender.name, header)
        if KINDS[header.id.kind].is_json:
            return Destination(partial, final, None)
        beside = Metadata(sender=sender.name, digest=header.digest, size=header.size, meta=header.meta)
        try:
            metadata = json.dumps(beside.model_dump(), allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise Refused("bad_header", f"its metadata is not plain JSON: {error}") from error
        return Destination(partial, final, metadata)

    def _in_place(self, sender: str, header: FileHeader, final: Path) -> dict[str, Any] | None:
        """The metadata with which exactly this file is in place, None if it is not.

        Only the metadata may change: a body that may have been used already may not.
        """
        try:
            size = final.stat().st_size
            if KINDS[header.id.kind].is_json:  # they have none
                return header.meta if (hash_file(final), size) == (header.digest, header.size) else None
        except FileNotFoundError:
            return None
        try:
            there = read_metadata(final)
        except BadInput:
            final.unlink(missing_ok=True)  # nobody can use it without; it comes again
            return None
        if (there.digest, size) != (header.digest, header.size):
            known = f"{header.id.kind} is here already with the digest {there.digest}"
            raise Refused("conflict", f"{known}; {header.digest} from {sender} cannot take its place")
        return there.meta

    def _ended(self, incoming: IncomingFile, refused: Refused | None, seconds: float) -> None:
        self._leave_place(incoming)
        if refused is None:
            self._counters.add("files_stored")
            self._counters.add("bytes_stored", incoming.header.size)
            log = self._log.info if KINDS[incoming.header.id.kind].of_task else self._log.debug
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
