"""Where the divisions of a node's guarded data sets are kept, and which tasks were planned before there were any."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from fedsim.config import ClientConfig
from fedsim.errors import BadInput
from fedsim.messages import Assignment, read_message
from fedsim.spool.durable import write_json
from fedsim.spool.files import Kind
from fedsim.spool.layout import Spool
from fedsim.worker.jobs import GuardOrder

FOLDER = "guarded"
"""In the node's spool; it holds secrets and is part of the node's backup."""
EARLIER = "earlier-tasks.json"


def guard_orders(config: ClientConfig) -> dict[str, GuardOrder]:
    """How the guarded data sets are divided, by name."""
    folder, least = config.spool / FOLDER, config.institution.min_difference
    return {
        dataset.name: GuardOrder(path=folder / f"{dataset.name}.npz", min_difference=least)
        for dataset in config.datasets
        if dataset.access == "guarded"
    }


def query_digest(assignment: Assignment) -> str:
    """What a task asks of this node's data: the same task with other settings is another query."""
    asked = assignment.model_dump_json(include={"task", "settings", "first_client", "num_clients", "dataset_digest"})
    return blake3(asked.encode()).hexdigest()


def earlier_tasks(spool: Spool, audit_log: Path) -> frozenset[str]:
    """The tasks, by `query_digest`, that this node took before this version first ran; they continue without blocks.

    What the server has sent does not show it: a task counts if the node's own audit log has a line about it.
    """
    path = spool.root / FOLDER / EARLIER
    if not path.exists():
        known = audit_log.read_text(encoding="utf-8", errors="replace") if audit_log.exists() else ""
        earlier = []
        for item in spool.arrived(Kind.INITPARAM):
            with suppress(BadInput):
                assignment = read_message(Assignment, item.path.read_bytes(), item.path.name)
                if f'"uid": "{assignment.task}"' in known:
                    earlier.append(query_digest(assignment))
        write_json(path, sorted(earlier))
    return frozenset(map(str, json.loads(path.read_text(encoding="utf-8"))))
