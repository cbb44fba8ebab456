"""One file on its way in: a temporary name that can be resumed, then verified, durable, and in place by a rename."""

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
from fedsim.receiver.quota import Claim
from fedsim.spool.durable import FILE_MODE, move_into_place, write_bytes
from fedsim.spool.files import FileHeader, metadata_path
from fedsim.spool.npy import hash_file
from fedsim.wire import Identity

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_refusal(error: OSError) -> Refused:
    """What the disk's trouble means for a sender: later may succeed."""
    code = "no_space" if error.errno in _FULL else "storage"
    return Refused(code, f"the file cannot be kept: {error.strerror}; try again later", retry=True)


@dataclass(frozen=True)
class Destination:
    """Where a file waits while it comes, and where it then lies; `metadata` is written beside a `.npy` file."""

    partial: Path
    final: Path
    metadata: bytes | None


class IncomingFile:
    """See fedsim.wire.incoming.Incoming. Not open before `open` or `renew`.

    Whoever works on the file holds its lock; nobody waits for it but the one connection that brings the file and the
    job that finishes it, which are never there at the same time. A newer offer only tries it (`supersede`).
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
        """Go on with what an earlier connection has left, or begin; the lock is held."""
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
        """The file is in place already, and only its metadata is new; the lock is held."""
        self.have = self.header.size
        self._renewing = True

    def write(self, data: memoryview) -> None:
        """Append bytes; raises Refused if they cannot be kept, and nothing else is disturbed."""
        with self.lock, self._refusing():
            claim = self._opened()
            view = data
            while view:
                view = view[os.write(self._descriptor, view) :]
            if not self.have:
                self._hasher.update(data)
            claim.received += len(data)

    def finish(self) -> None:
        """Verify, sync, rename: when this returns, the file is in place whatever happens to this host."""
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
        """The connection is gone, or the file is not wanted any more."""
        with self.lock:
            if self._descriptor < 0:
                return
            self._close()
            if not keep:
                self.destination.partial.unlink(missing_ok=True)
        self._ended(self, Refused("abandoned", "the connection ended before the file was whole", retry=True), 0.0)

    def supersede(self) -> bool:
        """A newer connection brings this file: let go, unless somebody works on it at this moment; never waits."""
        if not self.lock.acquire(blocking=False):
            return False
        try:
            self._close()
        finally:
            self.lock.release()
        self._ended(self, self._taken_over(), 0.0)
        return True

    def _opened(self) -> Claim:
        if self.claim is None or self._descriptor < 0:
            raise self._taken_over()
        return self.claim

    def _verify(self) -> None:
        # What an earlier connection left was not hashed while it came.
        digest = hash_file(self.destination.partial) if self.have else self._hasher.hexdigest()
        if digest != self.header.digest:
            message = f"it arrived with the digest {digest}, {self.header.digest} was offered; it is thrown away"
            raise Refused("wrong_digest", message, retry=True)
        try:
            self._check(self.destination.partial)
        except BadInput as error:
            raise Refused("bad_content", f"{self.header.id.kind} is refused: {error}") from error

    def _put_into_place(self) -> None:
        """The metadata first: it is the file itself that says that something is here."""
        place = self.destination
        if place.metadata is not None:
            if place.final.exists():  # the place was empty when this file took it, and only a file in it may come here
                raise Refused("conflict", f"another {self.header.id.kind} was put into its place meanwhile")
            self._write_metadata(place.metadata)
        move_into_place(place.partial, place.final)

    def _replace_metadata(self) -> None:
        place = self.destination
        if not place.final.exists() or place.metadata is None:
            raise Refused("busy", "the file that was here is used up; offer it again", retry=True)
        self._write_metadata(place.metadata)

    def _write_metadata(self, metadata: bytes) -> None:
        write_bytes(metadata_path(self.destination.final), metadata, by_way_of=self.destination.partial.parent)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn trouble of the disk into a refusal that may pass, and clean up after every refusal."""
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

    def _taken_over(self) -> Refused:
        return Refused("superseded", "a newer connection brings the same file", retry=True)
