"""Which digest the data set of a name has: by server.yml, or learnt once several nodes hold the same."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fedsim.log import get_logger
from fedsim.messages import Hello
from fedsim.store import Store
from fedsim.store.records import PinnedDataSet


class KnownData:
    """The known digests. A node that announces another one takes no part in tasks in which all have the same data."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._learnt: dict[str, str] = {}

    def learn(self, hello: Hello, others: Mapping[str, Hello]) -> None:
        """Pin what the node and another one hold alike; guarded data is each node's own."""
        new = {name: digest for name, digest in _open_copies(hello) if name not in self._learnt}
        if not new:  # as in nearly every announcement
            return
        held = {copy for name, other in others.items() if name != hello.node for copy in _open_copies(other)}
        for name, digest in new.items() & held:
            if self._store.datasets.pin(PinnedDataSet(name, digest, time.time())):
                get_logger().info("data_set_pinned", dataset=name, digest=digest)
            self.read()

    def read(self) -> dict[str, str]:
        """The learnt digests, by name: an administrator may have removed one."""
        self._learnt = {pinned.name: pinned.digest for pinned in self._store.datasets.all()}
        return dict(self._learnt)


def _open_copies(hello: Hello) -> list[tuple[str, str]]:
    """Name and digest of each data set of a node that is not guarded."""
    return [(info.name, info.digest) for info in hello.datasets if info.guard is None]
