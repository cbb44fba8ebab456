"""The chunks of a simulated round, trained at once by processes forked from this one.

Which process trains a chunk changes nothing: a trainer remembers nothing from chunk to chunk. Chunks and updates travel
over pipes as JSON and bytes; the global model is in memory that all processes share.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Self

import numpy as np

from fedsim.errors import BadInput, FedsimError
from fedsim.learning.aggregate import client_layout, downlink_layout, split_received, uplink_layout
from fedsim.learning.chunk import ChunkTrainer, ClientStates
from fedsim.learning.cohort import ChunkPlan
from fedsim.learning.engines import ClientTrainer
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import FloatArray
from fedsim.learning.strategies import Strategy
from fedsim.learning.transforms import Pipeline
from fedsim.update import PARAMETERS, Arrays, Layout, Update

DIED = "a process of the simulation has died: this machine's memory may not suffice for so many workers"


@dataclass
class _StatesOfChunk:
    """The states of a chunk's clients in the process that trains it; see `ClientStates`."""

    states: dict[int, Arrays]
    written: dict[int, Arrays] = field(default_factory=dict)
    layout: Layout = field(default_factory=lambda: Layout({}))

    def read(self, client: int) -> Arrays:
        """See `ClientStates`."""
        return self.states[client]

    def write(self, client: int, state: Arrays) -> None:
        """See `ClientStates`."""
        self.written[client] = self.layout.views(self.layout.flatten(state).copy())


class ForkedTrainers:
    """Processes that train chunks; a context manager, which ends them."""

    def __init__(
        self,
        workers: int,
        make_trainers: Callable[[], Sequence[ClientTrainer]],
        strategy: Strategy,
        pipeline: Pipeline,
        size: int,
    ) -> None:
        """Fork them.

        Args:
            workers: how many.
            make_trainers: is called in each of them; returns the trainer of each node, or one for all.
            strategy: of the task.
            pipeline: of the task.
            size: P, the number of the model's parameters.
        """
        self._strategy, self._pipeline, self._make_trainers = strategy, pipeline, make_trainers
        self._trainer: ChunkTrainer | None = None  # of a child, from its first chunk on
        self._states = client_layout(strategy, size)
        self._update = pipeline.layout(uplink_layout(strategy, size))
        received = downlink_layout(strategy, size)
        context = multiprocessing.get_context("fork")
        self._shared: FloatArray = np.ctypeslib.as_array(context.RawArray(ctypes.c_float, received.size))
        self._received = received.views(self._shared)
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            process = context.Process(target=self._serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)

    def __enter__(self) -> Self:
        """They run already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End them, once each has trained its chunk."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()

    def train(
        self,
        chunks: Sequence[ChunkPlan],
        round_number: int,
        vector: FloatArray,
        downlink: Arrays,
        states: ClientStates,
    ) -> list[Update]:
        """The updates of all chunks, in canonical order; see `train_chunk`.

        Raises:
            Diverged: a client's parameters or loss are no longer finite.
            BadInput: a chunk cannot be trained, or a process has died.
        """
        self._received[PARAMETERS][:] = vector
        for name, array in downlink.items():
            self._received[name][:] = array
        waiting, idle = list(reversed(chunks)), list(self._pipes)
        busy: dict[Connection, ChunkPlan] = {}
        done: dict[int, list[Update]] = {}
        while waiting or busy:
            while waiting and idle:
                pipe, chunk = idle.pop(), waiting.pop()
                self._ask(pipe, chunk, round_number, states)
                busy[pipe] = chunk
            ready = wait(list(busy))
            for pipe in [pipe for pipe in busy if pipe in ready]:
                done[busy.pop(pipe).id] = self._answer(pipe, states)
                idle.append(pipe)
        return [update for chunk in chunks for update in done[chunk.id]]

    def _ask(self, pipe: Connection, chunk: ChunkPlan, round_number: int, states: ClientStates) -> None:
        """Hand a chunk to an idle process."""
        question = {"round": round_number, "chunk": chunk.id, "node": chunk.node, "clients": chunk.clients}
        try:
            pipe.send_bytes(json.dumps(question).encode())
            for client in chunk.clients if self._strategy.client_state else ():
                pipe.send_bytes(self._states.flatten(states.read(client)).view(np.uint8).data)
        except BrokenPipeError as error:
            raise BadInput(DIED) from error

    def _answer(self, pipe: Connection, states: ClientStates) -> list[Update]:
        try:
            answer = json.loads(pipe.recv_bytes())
            if "diverged" in answer:
                raise Diverged(*answer["diverged"])
            if "problem" in answer:
                raise BadInput(answer["problem"])
            updates = [self._receive(pipe, Update.model_validate(each)) for each in answer["updates"]]
            for client in answer["states"]:
                states.write(client, self._states.views(np.frombuffer(pipe.recv_bytes(), np.float32)))
        except (EOFError, ConnectionResetError) as error:
            raise BadInput(DIED) from error
        return updates

    def _receive(self, pipe: Connection, update: Update) -> Update:
        vector = np.empty(self._update.size, np.float32)
        pipe.recv_bytes_into(vector.view(np.uint8).data)
        return update.with_arrays(self._update.views(vector))

    # ------------------------------------------------------------ in a child

    def _serve(self, pipe: Connection) -> None:
        for ours in self._pipes:  # the parent's ends, so that a closed one is noticed here
            ours.close()
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the simulation has ended
            while True:
                asked = json.loads(pipe.recv_bytes())
                chunk = ChunkPlan(asked["chunk"], asked["node"], tuple(asked["clients"]))
                states = self._read_states(pipe, chunk.clients)
                try:
                    self._send(pipe, self._train(chunk, asked["round"], states), states)
                except Diverged as error:
                    pipe.send_bytes(json.dumps({"diverged": [error.round_number, error.client]}).encode())
                except FedsimError as error:
                    pipe.send_bytes(json.dumps({"problem": str(error)}).encode())

    def _train(self, chunk: ChunkPlan, round_number: int, states: _StatesOfChunk | None) -> Iterator[Update]:
        if self._trainer is None:
            self._trainer = ChunkTrainer(self._make_trainers(), self._strategy, self._pipeline)
        vector, downlink = split_received(self._strategy, self._shared)
        return self._trainer.train(chunk, round_number, vector, downlink, states)

    def _read_states(self, pipe: Connection, clients: Sequence[int]) -> _StatesOfChunk | None:
        if not self._strategy.client_state:
            return None
        read = {client: np.frombuffer(pipe.recv_bytes(), np.float32) for client in clients}
        states: dict[int, Arrays] = {client: self._states.views(vector) for client, vector in read.items()}
        return _StatesOfChunk(states, layout=self._states)

    def _send(self, pipe: Connection, updates: Iterator[Update], states: _StatesOfChunk | None) -> None:
        trained = [(update, self._update.flatten(update.arrays).copy()) for update in updates]
        kept = {} if states is None else states.written
        described = [update.model_dump(mode="json") for update, _ in trained]
        pipe.send_bytes(json.dumps({"updates": described, "states": list(kept)}).encode())
        for _, vector in trained:
            pipe.send_bytes(vector.view(np.uint8).data)
        for state in kept.values():
            pipe.send_bytes(self._states.flatten(state).view(np.uint8).data)
