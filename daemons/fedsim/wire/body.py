"""The content of a file to send: a file on disk, or bytes in memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from fedsim.errors import BadInput
from fedsim.wire.transport.stream import Stream

_HASH_BLOCK_BYTES = 4 << 20


class FileBody:
    """An open file, or bytes. The size is read once; a file that is replaced by a rename is sent as it was."""

    available: Callable[[], int] | None = None
    """How many bytes exist so far, of a file that still arrives; None: all of them do."""

    def __init__(self, what: Path | bytes) -> None:
        self._bytes: memoryview | None = None
        self._users = 1
        self._descriptor = -1
        if isinstance(what, bytes):
            self._bytes = memoryview(what)
            self.size = len(what)
            return
        try:
            # Without O_NONBLOCK, opening a pipe would wait for its writer.
            self._descriptor = os.open(what, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, PermissionError) as error:
            raise BadInput(f"{what} cannot be sent: {error.strerror}") from error
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise BadInput(f"{what} cannot be sent: it is not a regular file")

    def digest(self) -> str:
        """The blake3 digest; reads the whole file."""
        if self._bytes is not None:
            return blake3(self._bytes).hexdigest()
        hasher = blake3()
        buffer = memoryview(bytearray(min(_HASH_BLOCK_BYTES, self.size)))
        done = 0
        while done < self.size and (count := os.preadv(self._descriptor, [buffer], done)):
            hasher.update(buffer[: min(count, self.size - done)])
            done += count
        return hasher.hexdigest()

    def send(self, stream: Stream, offset: int, count: int) -> int | None:
        """Send up to `count` bytes from `offset` on; returns how many were sent, None if the stream is not ready."""
        if self._bytes is not None:
            return stream.write(self._bytes[offset : offset + count])
        return stream.send_file(self._descriptor, offset, count)

    @property
    def shrunk(self) -> bool:
        """Whether the file has become shorter since it was opened, so that it cannot be sent."""
        return self._bytes is None and os.fstat(self._descriptor).st_size < self.size

    def hold(self) -> None:
        """Keep it open for one more user: a frame that has begun is completed even if the transfer is cancelled."""
        self._users += 1

    def close(self) -> None:
        """End one use; the last closes the file."""
        self._users -= 1
        if not self._users and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
