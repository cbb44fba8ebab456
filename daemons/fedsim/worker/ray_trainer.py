"""Training of clients as tasks of a Ray cluster.

What all clients of a task share – data, model and plug-ins – is put into the object store once; the global model once
a round. A client's task gets references to both, and its client's state; its update comes back through the store.
"""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import torch
from blake3 import blake3

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.learning.components import Components
from fedsim.learning.engine import make_deterministic
from fedsim.learning.engines import ClientData, ClientTrainer, no_state
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import FloatArray
from fedsim.messages import ModelSpec
from fedsim.update import PARAMETERS, Arrays, Update

LOOPBACK = "127.0.0.1"
_ALWAYS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
"""Read when Ray is imported: no reports to its makers, and no cluster without a token."""
_ON_THIS_HOST = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Read when Ray is imported: no cluster of several hosts, so that nothing listens elsewhere."""


def connect(address: str | None, processes: int, store_bytes: int) -> None:
    """Connect this process to a cluster, once.

    Args:
        address: HOST:PORT of the head; None: a cluster of this host alone, which ends with this process.
        processes: of a cluster of this host.
        store_bytes: of its object store.

    Raises:
        BadInput: Ray is not installed, or the cluster is not reached.
    """
    os.environ.update(_ALWAYS)
    if address is None:
        os.environ.update(_ON_THIS_HOST, RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        import ray  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise BadInput("engine ray: Ray is not installed here: pip install 'fedsim-lab[ray]'") from error
    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        if address is not None:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                num_cpus=processes,
                num_gpus=0,
                object_store_memory=store_bytes,
                include_dashboard=False,
                _node_ip_address=LOOPBACK,
                **quiet,
            )
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        where = address or "this host"
        raise BadInput(f"engine ray: the cluster at {where} cannot be used: {error}") from error


@dataclass(frozen=True)
class _Work:
    """What all clients of a task share; `key` names it in the memory of a process."""

    key: str
    data: ClientData
    model_spec: ModelSpec
    components: Components
    engine: str
    threads: int


_trainer: tuple[str, ClientTrainer] | None = None
"""In a process of the cluster: the trainer of the task that it trained last."""


def _train_client(
    work: _Work, client: int, round_number: int, received: dict[str, FloatArray], state: Arrays
) -> Update | Diverged:
    """Train one client, in a process of the cluster."""
    global _trainer  # noqa: PLW0603 - what a process keeps from task to task of Ray
    if _trainer is None or _trainer[0] != work.key:
        make_deterministic(work.threads)
        engine = plugins.make(plugins.ENGINES, work.engine, {})
        _trainer = (work.key, engine.start(work.data, work.model_spec, work.components, "cpu"))
    downlink = {name: array for name, array in received.items() if name != PARAMETERS}
    given: dict[str, Any] = {"downlink": downlink} if downlink else {}
    try:
        (update,) = _trainer[1].train([client], round_number, received[PARAMETERS], state_of=lambda _: state, **given)
    except Diverged as error:
        return error
    return update.copied()


class RayTrainer:
    """Trains clients as Ray tasks; see `ClientTrainer`."""

    def __init__(
        self, data: ClientData, model_spec: ModelSpec, components: Components, engine: str, at_once: int
    ) -> None:
        """Put what all clients share into the object store.

        Args:
            data: the node's training examples.
            model_spec: the task's model.
            components: the task's plug-ins.
            engine: the name of the engine that trains in each process of the cluster.
            at_once: how many clients are given to the cluster at once.
        """
        import ray  # noqa: PLC0415 - an optional dependency

        self._ray = ray
        threads = torch.get_num_threads()
        self._work = ray.put(_Work(uuid4().hex, data, model_spec, components, engine, threads))
        self._task = ray.remote(_train_client).options(num_cpus=1)
        self._at_once = at_once
        self._received: tuple[str, Any] | None = None

    def train(
        self,
        clients: Sequence[int],
        round_number: int,
        global_vector: FloatArray,
        *,
        downlink: Arrays = MappingProxyType({}),
        state_of: Callable[[int], Arrays] = no_state,
    ) -> Iterator[Update]:
        """Yield the clients' updates in the order of `clients`; see `ClientTrainer`.

        As many more clients are trained at once as there are processes: of all others nothing is in memory.
        """
        received = self._put({PARAMETERS: global_vector, **downlink})
        waiting, running = deque(clients), deque[Any]()
        while waiting or running:
            while waiting and len(running) < 2 * self._at_once:
                client = waiting.popleft()
                state = dict(state_of(client))
                running.append(self._task.remote(self._work, client, round_number, received, state))
            yield self._result(running.popleft())

    def _put(self, received: dict[str, FloatArray]) -> Any:
        """The reference of what a round's clients receive; the same one for all chunks of the round."""
        hasher = blake3()
        for array in received.values():
            hasher.update(array.view("uint8").data)
        key = hasher.hexdigest()
        if self._received is None or self._received[0] != key:
            self._received = (key, self._ray.put(received))
        return self._received[1]

    def _result(self, reference: Any) -> Update:
        try:
            found: Update | Diverged = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, BadInput):
                raise BadInput(str(error.cause)) from error
            raise
        except self._ray.exceptions.RayError as error:
            raise BadInput(f"engine ray: the cluster has failed: {error}") from error
        if isinstance(found, Diverged):
            raise found
        return found
