"""The context of the running tasks on a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fedsim.client.audit_log import AuditLog
from fedsim.config import ClientConfig
from fedsim.metrics import NodeMetrics
from fedsim.runtime.bulkhead import Restarts
from fedsim.runtime.outbox import Outbox
from fedsim.runtime.writer import Writer
from fedsim.spool.layout import Spool
from fedsim.wire.peer import Peer
from fedsim.worker.forking import ForkServers


@dataclass
class NodeContext:
    """Shared by all tasks; `config` is replaced when the daemon reloads it."""

    config: ClientConfig
    spool: Spool
    outbox: Outbox
    writer: Writer
    server: Peer
    fork_servers: ForkServers
    audit_log: AuditLog
    announce: Callable[[], None]
    metrics: NodeMetrics
    earlier: frozenset[str] = frozenset()  # see client.guards
    restarts: Restarts = field(default_factory=Restarts)
