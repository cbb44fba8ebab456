"""What every running task on the server works with."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.config import ServerConfig
from fedsim.metrics import ServerMetrics
from fedsim.server.finals import FinalModels
from fedsim.server.nodes import Nodes
from fedsim.server.stops import Stops
from fedsim.spool.layout import Spool
from fedsim.store import Store
from fedsim.wire.outbox import Outbox


@dataclass
class Platform:
    """Shared by all tasks; `config` is replaced when the daemon reloads it."""

    config: ServerConfig
    store: Store
    spool: Spool
    outbox: Outbox
    nodes: Nodes
    finals: FinalModels
    stops: Stops
    metrics: ServerMetrics
