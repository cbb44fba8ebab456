"""An institution with one node and the server that a user sees, in one process, with the code of node and server.

The user chooses settings and receives the model of each round. Everything between is that of the platform: what the
node announces, the plan, the institution's rules, and the workers' jobs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.client.announcing import make_hello
from fedsim.client.guards import guard_orders
from fedsim.config import ClientConfig, TaskLimits
from fedsim.data import load_dataset
from fedsim.data.guard import read_division
from fedsim.data.load import inspect_dataset
from fedsim.learning.examples import IntArray
from fedsim.learning.networks import initial_vector
from fedsim.messages import Broadcast, Chunk, PluginInfo, Uplink
from fedsim.plugins import provenance
from fedsim.settings import TaskSettings
from fedsim.spool.npy import open_vector, write_vector
from fedsim.spool.updates import update_path
from fedsim.state_machines.plan import Plan, make_plan
from fedsim.state_machines.policy import beyond_assignment, beyond_rules, refusal
from fedsim.worker import jobs
from fedsim.worker.inspector import Inspected
from fedsim.worker.node_jobs import NodeJobs

Vector = NDArray[np.float64]
DATASET = "digits"


class RefusedError(Exception):
    """The server does not plan the task, or the node refuses it."""


@dataclass(frozen=True)
class Query:
    """What a user knows after a task: its settings, the initial model and that of each round, float64 [P].

    `num_examples` are those behind the last round, which the real user sees only rounded.
    """

    settings: TaskSettings
    models: list[Vector]
    num_examples: int


@dataclass
class SmallInstitution:
    """A node with the data set digits, whose test set it shares."""

    folder: Path
    access: str
    rules: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        dataset = {"name": DATASET, "path": DATASET, "format": DATASET, "share": True, "access": self.access}
        self.config = ClientConfig.model_validate(
            {
                "name": "hospital",
                "server": {"port": 1},
                "clients": 1000,
                "engine": "sequential",  # with long steps it rounds less, so that an attacker sees more
                "spool": str(self.folder),
                "data": str(self.folder),
                "datasets": [dataset],
                "institution": self.rules,
            }
        )
        self.guard = guard_orders(self.config).get(DATASET)
        guard = None if self.guard is None else (self.guard.path, self.guard.min_difference)
        info = inspect_dataset(self.config.datasets[0], self.folder, guard)
        self.hello = make_hello(self.config, Inspected((info,)), [], [])
        self.data = load_dataset(self.config.datasets[0], self.folder)
        self._tasks = 0

    @property
    def examples(self) -> Vector:
        """The training examples, float64 [n, 64]."""
        return self.data.train.take(slice(None)).reshape(len(self.data.train), -1).astype(np.float64)

    @property
    def blocks(self) -> list[IntArray]:
        """The blocks, which only the node knows: the indices of their examples."""
        assert self.guard is not None
        division = read_division(self.guard.path, DATASET, self.data.train, self.guard.min_difference)
        return list(division.order.reshape(-1, division.size))

    def plan(self, settings: TaskSettings) -> Plan:
        """What the server plans; raises `RefusedError`."""
        chosen = settings.chosen_plugins.items()
        plan = make_plan(
            task=f"{self._tasks:032x}",
            number=self._tasks + 1,
            user="eve",
            settings=settings,
            hellos={self.hello.node: self.hello},
            not_heard=[],
            server_dataset=None,
            limits=TaskLimits(),
            broadcast_bytes=10**6,
            plugins={setting: PluginInfo.of(name, provenance(group, name)) for setting, (group, name) in chosen},
            version="1",
        )
        if not isinstance(plan, Plan):
            raise RefusedError(plan.reason)
        return plan

    def answer(self, settings: TaskSettings, plan: Plan | None = None) -> Query:
        """Run a task to its end, and return what its user sees; raises `RefusedError`.

        A hostile server may give another plan than its own code makes.
        """
        self._tasks += 1
        plan = plan or self.plan(settings)
        assignment = plan.assignment(self.hello.node)
        if (reason := refusal(assignment, self.config)) is not None:
            raise RefusedError(reason)
        worker, out = NodeJobs(1), self.folder / "tasks" / str(self._tasks)
        loaded = worker.do(
            jobs.Load(
                assignment=assignment,
                dataset=self.config.datasets[0],
                folder=self.folder,
                min_examples=self.config.institution.min_examples,
                guard=self.guard,
            )
        )
        if isinstance(loaded, jobs.JobFailed):
            raise RefusedError(loaded.reason)
        assert plan.uplink == Uplink.SUM
        models = [initial_vector(plan.model_spec, plan.settings.seed)]
        examples = 0
        for number in range(1, plan.settings.num_rounds + 1):
            chunks = tuple(Chunk(id=chunk.id, clients=chunk.clients) for chunk in plan.chunks(number))
            broadcast = Broadcast(chunks=chunks, used_through=number - 1)
            rules = self.config.institution
            reason = beyond_assignment(assignment, number, broadcast)
            if (reason := reason or beyond_rules(assignment, rules, number, broadcast)) is not None:
                raise RefusedError(reason)
            model = out / f"model-{number}.npy"
            write_vector(model, models[-1])
            total, examples = np.zeros(len(models[0])), 0
            for chunk in chunks:
                train = jobs.Train(round=number, chunk=chunk.id, clients=chunk.clients, model=model, out=out)
                trained = worker.do(train)
                if not isinstance(trained, jobs.ChunkTrained):
                    raise RefusedError("diverged")
                (update,) = trained.updates
                total += open_vector(update_path(out, update)).astype(np.float64) * update.num_examples
                examples += update.num_examples
            models.append((total / examples).astype(np.float32))
        return Query(plan.settings, [model.astype(np.float64) for model in models], examples)
