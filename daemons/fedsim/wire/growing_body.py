"""The content of a file that is sent while it still arrives."""

from __future__ import annotations

import os
from pathlib import Path

from fedsim.wire.body import FileBody


class GrowingBody(FileBody):
    """An open file of which `size` bytes will exist; `received` is set as it grows, from any thread.

    The file may be renamed meanwhile. It is never made shorter: what is received anew is another file.
    """

    def __init__(self, path: Path, size: int, received: int) -> None:
        super().__init__(path)
        self.size = size
        self.received = received
        self.available = lambda: self.received

    @property
    def shrunk(self) -> bool:
        """Whether the file has become shorter than what was received of it."""
        return os.fstat(self._descriptor).st_size < self.received
