"""What every running task on the server works with."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedsim.config import ServerConfig
from fedsim.metrics import ServerMetrics
from fedsim.runtime.bulkhead import Restarts
from fedsim.runtime.outbox import Outbox
from fedsim.runtime.writer import Writer
from fedsim.server.broadcasts import Broadcasts
from fedsim.server.deliveries import FinalDeliveries, StopDeliveries
from fedsim.server.initial_files import InitialFiles
from fedsim.server.kept_states import KeptStates
from fedsim.server.known_data import KnownData
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
    broadcasts: Broadcasts
    known_data: KnownData
    finals: FinalDeliveries
    stops: StopDeliveries
    kept: KeptStates
    initial_files: InitialFiles
    fork_servers: ForkServers
    metrics: ServerMetrics
    restarts: Restarts = field(default_factory=Restarts)
