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
    """See fedsim.wire.incoming.Incoming. A lock guards it, because a newer connection may take the file over."""

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
        self.partial = destination.partial
        self.have = 0
        self.received = 0
        self._destination = destination
        self._check = check
        self._ended = ended
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._descriptor = -1
        try:
            self._open()
        except OSError as error:
            raise disk_refusal(error) from error

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        return self.header.size - self.received

    def write(self, data: memoryview) -> None:
        """Append bytes; raises Refused if they cannot be kept, and nothing else is disturbed."""
        with self._lock, self._refusing():
            if self._descriptor < 0:
                raise self._taken_over()
            view = data
            while view:
                view = view[os.write(self._descriptor, view) :]
            if not self.have:
                self._hasher.update(data)
            self.received += len(data)

    def finish(self) -> None:
        """Verify, sync, rename: when this returns, the file is in place whatever happens to this host."""
        with self._lock, self._refusing():
            if self._descriptor < 0:
                raise self._taken_over()
            try:
                self._verify()
                os.fsync(self._descriptor)
                if self._destination.metadata is not None:
                    write_bytes(metadata_path(self._destination.final), self._destination.metadata)
                move_into_place(self.partial, self._destination.final)
            finally:
                self._close()
        self._ended(self, None, time.monotonic() - self._started)

    def abandon(self, *, keep: bool) -> None:
        """The connection is gone, or the file is not wanted any more."""
        with self._lock:
            if self._descriptor < 0:
                return
            self._close()
            if not keep:
                self.partial.unlink(missing_ok=True)
        self._ended(self, Refused("abandoned", "the connection ended before the file was whole", retry=True), 0.0)

    def supersede(self) -> None:
        """A newer connection brings this file; waits for a `finish` that is under way."""
        self.abandon(keep=True)

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self.partial, flags, FILE_MODE)
        there = os.fstat(self._descriptor).st_size
        if there > self.header.size:
            os.ftruncate(self._descriptor, 0)
            there = 0
        os.lseek(self._descriptor, there, os.SEEK_SET)
        self.have = self.received = there
        self._hasher = blake3()

    def _verify(self) -> None:
        # What an earlier connection left was not hashed while it came.
        digest = hash_file(self.partial) if self.have else self._hasher.hexdigest()
        if digest != self.header.digest:
            message = f"it arrived with the digest {digest}, {self.header.digest} was offered; it is thrown away"
            raise Refused("wrong_digest", message, retry=True)
        try:
            self._check(self.partial)
        except BadInput as error:
            raise Refused("bad_content", f"{self.header.id.kind} is refused: {error}") from error

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
            self.partial.unlink(missing_ok=True)
        self._ended(self, refused, 0.0)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _taken_over(self) -> Refused:
        return Refused("superseded", "a newer connection brings the same file", retry=True)
