"""What every running task on the server works with."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.config import ServerConfig
from fedsim.metrics import ServerMetrics
from fedsim.runtime.outbox import Outbox
from fedsim.runtime.writer import Writer
from fedsim.server.deliveries import FinalDeliveries, StopDeliveries
from fedsim.server.nodes import Nodes
from fedsim.spool.layout import Spool
from fedsim.store import Store
from fedsim.worker.forking import ForkServers


@dataclass
class ServerContext:
    """Shared by all tasks; `config` is replaced when the daemon reloads it."""

    config: ServerConfig
    store: Store
    spool: Spool
    outbox: Outbox
    writer: Writer
    nodes: Nodes
    finals: FinalDeliveries
    stops: StopDeliveries
    fork_servers: ForkServers
    metrics: ServerMetrics
