"""What tests of the whole platform share: a lab of real processes, small data, and a way to await what the rows say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import psutil
import pytest
import yaml
from inotify_simple import INotify, flags

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate
from fedsim.settings import TaskSettings, parse_settings
from fedsim.store import Store, open_store
from fedsim.store.records import Task
from fedsim.testing.local_cluster import LocalCluster, NodeSpec
from fedsim.web.accounts import create_admin, make_token

T = TypeVar("T")
DIGITS: dict[str, Any] = {"name": "digits", "path": "digits", "format": "digits", "share": True, "show_labels": True}
# Small and quick, on both nodes.
SMALL: dict[str, Any] = {
    "dataset": "digits",
    "model": "2nn",
    "num_clients": 20,
    "fraction_train": 0.5,
    "local_epochs": 1,
    "local_learning_rate": 0.1,
    "num_rounds": 6,
    "evaluate_every": 2,
    "save_every": 3,
    "num_nodes": 2,
}

LONG: dict[str, Any] = {"local_epochs": 6, "num_rounds": 5}
"""Rounds of a third of a second or so, so that there is a middle in which something can happen."""


def lives(process: psutil.Process) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """What the fork servers of a process have forked, and what lives."""
    forked = [worker for server in process.children() for worker in server.children(recursive=True)]
    return [worker for worker in forked if lives(worker)]


class Platform(LocalCluster):
    """A lab whose rows can be awaited and whose API can be asked."""

    store: Store
    api: httpx.Client

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.connect(open_store(self.database))
        except BaseException:
            self.stop()
            raise
        return self

    def connect(self, store: Store) -> None:
        """Open the database and the API; a row can be awaited from then on."""
        self.store = store
        user = create_admin(self.store, "researcher", "correct horse battery", now=time.time())
        token, _ = make_token(self.store, user, "tests", now=time.time())
        self.api = httpx.Client(base_url=f"{self.url}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=30)

    def __exit__(self, *exception: object) -> None:
        if hasattr(self, "api"):
            self.api.close()
            self.store.close()
        super().__exit__(*exception)

    def submit(self, **settings: Any) -> int:
        """Submit a small task through the web; returns its number."""
        answer = self.api.post("/tasks", json={**SMALL, **settings})
        assert answer.status_code == 201, answer.text
        return int(answer.json()["task"]["number"])

    def task(self, number: int) -> Task:
        task = self.store.tasks.get(number)
        assert task is not None
        return task

    def await_row(self, look: Callable[[], T | None], *, seconds: float = 90, what: str = "") -> T:
        """Look again each time that the database's files change, until there is something."""
        deadline = time.monotonic() + seconds
        with INotify() as inotify:
            inotify.add_watch(self.folder, flags.MODIFY | flags.CREATE)
            while True:
                found = look()
                if found is not None and found is not False:
                    return found
                left = deadline - time.monotonic()
                if left <= 0:
                    logs = "\n".join(f"== {name}\n{process.tail()}" for name, process in self.processes.items())
                    pytest.fail(f"waited {seconds:g} s in vain {what}\n{logs}")
                # A commit becomes visible through shared memory, a moment after its last write that inotify sees.
                inotify.read(timeout=min(100, int(left * 1000) + 1))

    def await_offline(self, *nodes: str) -> None:
        """Await that the server holds nodes for gone."""
        timeout = yaml.safe_load(self.config("server").read_text())["node_timeout_seconds"]
        last = max((self.server_spool / "hello" / f"{name}.json").stat().st_mtime for name in nodes)
        time.sleep(max(0.0, last + timeout - time.time()))  # being gone is nothing but time without a word

    def finish(self, number: int, *, seconds: float = 120) -> Task:
        """Await the end of a task."""

        def finished() -> Task | None:
            task = self.task(number)
            return task if task.state.finished else None

        return self.await_row(finished, seconds=seconds, what=f"for the end of task {number}")

    def completed(self, number: int, *, seconds: float = 120) -> Task:
        """Await the end of a task, which must be a good one."""
        task = self.finish(number, seconds=seconds)
        assert task.state == "completed", task.reason
        return task

    def await_round(self, number: int, round_number: int) -> Task:
        """Await that a task trains in a round, or a later one."""

        def there() -> Task | None:
            task = self.task(number)
            assert not task.state.finished, task.reason
            return task if task.round >= round_number and task.phase == "training" else None

        return self.await_row(there, what=f"for round {round_number} of task {number}")

    def workers(self, name: str) -> list[psutil.Process]:
        """The worker processes of a daemon."""
        return workers_of(psutil.Process(self.processes[name].pid))


def digits_lab(folder: Path, *, nodes: int = 2, **options: Any) -> Platform:
    """A lab that trains on scikit-learn's digits."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    names = [f"node-{letter}" for letter in "abcdefgh"[:nodes]]
    settings = {"clients": 50, "announce_seconds": 2, **options.pop("client", {})}
    server = {"node_timeout_seconds": 8, **options.pop("server", {})}
    return Platform(folder, [NodeSpec(name, data, [DIGITS], settings) for name in names], server=server, **options)


def small_settings(**changes: Any) -> TaskSettings:
    return parse_settings({**SMALL, **changes})[0]


def undisturbed(**settings: Any) -> str:
    """The final digest of a small task to which nothing happens, on the two nodes of `digits_lab`; computed once."""
    return _simulated(json.dumps(settings))


@cache
def _simulated(settings: str) -> str:
    make_deterministic(1)
    dataset = load_dataset(DataSetConfig.model_validate(DIGITS), Path())
    task = small_settings(**json.loads(settings))
    return simulate(task, dataset, chunk_clients=5, placement=[(0, 10), (10, 10)]).digest
