"""A file being received: under a temporary name that can be resumed, then verified, durable, and renamed."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from fedsim.errors import BadInput, Refused
from fedsim.inbox.quota import Claim
from fedsim.spool.durable import FILE_MODE, move_into_place, write_bytes
from fedsim.spool.files import FileHeader, metadata_path
from fedsim.spool.npy import hash_file
from fedsim.wire import Identity

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_refusal(error: OSError) -> Refused:
    """The refusal for an error of the disk; to be retried later."""
    code = "no_space" if error.errno in _FULL else "storage"
    return Refused(code, f"the file cannot be stored: {error.strerror}; try again later", retry=True)


@dataclass(frozen=True)
class Destination:
    """The temporary and the final path of a file; `metadata` is stored next to a `.npy` file."""

    partial: Path
    final: Path
    metadata: bytes | None


class IncomingFile:
    """An `Incoming` (see `wire.transport.receiving`). Not open before `open` or `renew`.

    Its lock is held while the file is worked on. Only the connection that receives the file and the job that finishes
    it wait for the lock, never both at once; a newer offer only tries it (`supersede`).
    """

    def __init__(
        self,
        header: FileHeader,
        sender: Identity,
        destination: Destination,
        *,
        check: Callable[[Path], None],
        ended: Callable[[IncomingFile, Refused | None, float], None],
    ) -> None:
        self.header = header
        self.sender = sender
        self.destination = destination
        self.claim: Claim | None = None
        self.have = 0
        self.lock = threading.Lock()
        self._check = check
        self._ended = ended
        self._started = time.monotonic()
        self._descriptor = -1
        self._renewing = False

    def open(self, claim: Claim) -> None:
        """Resume what an earlier connection has received, or begin; the lock is held."""
        self.claim = claim
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(claim.part, flags, FILE_MODE)
        there = os.fstat(self._descriptor).st_size
        if there > self.header.size:
            os.ftruncate(self._descriptor, 0)
            there = 0
        os.lseek(self._descriptor, there, os.SEEK_SET)
        self.have = claim.received = there
        self._hasher = blake3()

    def renew(self) -> None:
        """The file is stored already, and only its metadata is new; the lock is held."""
        self.have = self.header.size
        self._renewing = True

    def write(self, data: memoryview) -> None:
        """Append bytes; raises Refused if they cannot be stored."""
        with self.lock, self._refusing():
            claim = self._opened()
            view = data
            while view:
                view = view[os.write(self._descriptor, view) :]
            if not self.have:
                self._hasher.update(data)
            claim.received += len(data)

    def finish(self) -> None:
        """Verify, sync, rename: when this returns, the file is stored durably under its final name."""
        with self.lock, self._refusing():
            if self._renewing:
                self._replace_metadata()
            else:
                self._opened()
                self._verify()
                os.fsync(self._descriptor)
                self._put_into_place()
                self._close()
        self._ended(self, None, time.monotonic() - self._started)

    def abandon(self, *, keep: bool) -> None:
        """The connection has ended, or the sender has cancelled."""
        with self.lock:
            if self._descriptor < 0:
                return
            self._close()
            if not keep:
                self.destination.partial.unlink(missing_ok=True)
        self._ended(self, Refused("abandoned", "the connection ended before the file was complete", retry=True), 0.0)

    def supersede(self) -> bool:
        """A newer connection offers this file: stop, unless the file is worked on at this moment. Never waits."""
        if not self.lock.acquire(blocking=False):
            return False
        try:
            self._close()
        finally:
            self.lock.release()
        self._ended(self, self._superseded(), 0.0)
        return True

    def _opened(self) -> Claim:
        if self.claim is None or self._descriptor < 0:
            raise self._superseded()
        return self.claim

    def _verify(self) -> None:
        # What an earlier connection received was not hashed then.
        digest = hash_file(self.destination.partial) if self.have else self._hasher.hexdigest()
        if digest != self.header.digest:
            message = f"it arrived with the digest {digest}, {self.header.digest} was offered; it is discarded"
            raise Refused("wrong_digest", message, retry=True)
        try:
            self._check(self.destination.partial)
        except BadInput as error:
            raise Refused("bad_content", f"{self.header.id.kind} is refused: {error}") from error

    def _put_into_place(self) -> None:
        """Metadata first: the name of the file itself marks it as arrived."""
        path = self.destination
        if path.metadata is not None:
            if path.final.exists():  # the path was free when it was reserved
                raise Refused("conflict", f"another {self.header.id.kind} was stored under its path meanwhile")
            self._write_metadata(path.metadata)
        move_into_place(path.partial, path.final)

    def _replace_metadata(self) -> None:
        path = self.destination
        if not path.final.exists() or path.metadata is None:
            raise Refused("busy", "the stored file has been used and removed; offer it again", retry=True)
        self._write_metadata(path.metadata)

    def _write_metadata(self, metadata: bytes) -> None:
        write_bytes(metadata_path(self.destination.final), metadata, by_way_of=self.destination.partial.parent)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn errors of the disk into a refusal to be retried, and clean up after every refusal."""
        try:
            yield
        except OSError as error:
            refused = disk_refusal(error)
            self._fail(refused)
            raise refused from error
        except Refused as refused:
            self._fail(refused)
            raise

    def _fail(self, refused: Refused) -> None:
        self._close()
        if refused.code != "superseded":
            self.destination.partial.unlink(missing_ok=True)
        self._ended(self, refused, 0.0)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._renewing = False

    def _superseded(self) -> Refused:
        return Refused("superseded", "a newer connection offers the same file", retry=True)
