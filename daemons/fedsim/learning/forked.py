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
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Self

import numpy as np
import torch

from fedsim.array_layout import Layout
from fedsim.errors import BadInput, FedsimError
from fedsim.learning.aggregate import client_layout, downlink_layout, split_received, uplink_layout
from fedsim.learning.chunk import ChunkStates, ChunkTrainer, senders_of
from fedsim.learning.cohort import ChunkPlan
from fedsim.learning.engines import ClientTrainer
from fedsim.learning.errors import Diverged
from fedsim.learning.examples import FloatArray
from fedsim.learning.strategies import Strategy
from fedsim.learning.transforms import Pipeline
from fedsim.update import PARAMETERS, Arrays, Update

DIED = "a process of the simulation has died: this machine's memory may not suffice for so many workers"


@dataclass
class _StatesOfChunk:
    """The states of a chunk's clients or senders in the process that trains it; see `ClientStates`."""

    layout: Layout
    states: dict[int, Arrays]
    written: dict[int, Arrays] = field(default_factory=dict)

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
        personal: int = 0,
    ) -> None:
        """Fork them.

        Args:
            workers: how many.
            make_trainers: is called in each of them; returns the trainer of each node, or one for all.
            strategy: of the task.
            pipeline: of the task.
            size: P, the length of the model's flat vector.
            personal: Q, that of a client's personal vector.
        """
        self._strategy, self._pipeline, self._make_trainers = strategy, pipeline, make_trainers
        self._trainer: ChunkTrainer | None = None  # of a child, from its first chunk on
        self._states = client_layout(strategy, size, personal)
        self._kept = pipeline.kept_layout(uplink_layout(strategy, size))
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
        states: ChunkStates,
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

    def _owners(self, chunk: ChunkPlan) -> tuple[tuple[Layout, tuple[int, ...]], tuple[Layout, tuple[int, ...]]]:
        """Of which clients and of which senders states are exchanged, with their layouts."""
        clients = chunk.clients if self._states.shapes else ()
        return (self._states, clients), (self._kept, senders_of(chunk, self._strategy) if self._kept.shapes else ())

    def _ask(self, pipe: Connection, chunk: ChunkPlan, round_number: int, states: ChunkStates) -> None:
        """Hand a chunk to an idle process."""
        question = {"round": round_number, **asdict(chunk)}
        try:
            pipe.send_bytes(json.dumps(question).encode())
            for held, (layout, owners) in zip((states.clients, states.senders), self._owners(chunk), strict=True):
                if held is not None:
                    for owner in owners:
                        pipe.send_bytes(layout.flatten(held.read(owner)).view(np.uint8).data)
        except BrokenPipeError as error:
            raise BadInput(DIED) from error

    def _answer(self, pipe: Connection, states: ChunkStates) -> list[Update]:
        try:
            answer = json.loads(pipe.recv_bytes())
            if "diverged" in answer:
                raise Diverged(*answer["diverged"])
            if "problem" in answer:
                raise BadInput(answer["problem"])
            updates = [self._receive(pipe, Update.model_validate(each)) for each in answer["updates"]]
            kept = (states.clients, self._states), (states.senders, self._kept)
            for (held, layout), owners in zip(kept, answer["states"], strict=True):
                if held is not None:
                    for owner in owners:
                        held.write(owner, layout.views(np.frombuffer(pipe.recv_bytes(), np.float32)))
        except (EOFError, ConnectionResetError) as error:
            raise BadInput(DIED) from error
        return updates

    def _receive(self, pipe: Connection, update: Update) -> Update:
        vector = np.empty(self._update.size, self._update.dtype)
        pipe.recv_bytes_into(vector.view(np.uint8).data)
        return update.with_arrays(self._update.views(vector))

    # ------------------------------------------------------------ in a child

    def _serve(self, pipe: Connection) -> None:
        # The threads with which the parent has computed do not exist here, and OpenMP would wait for them for ever.
        torch.set_num_threads(1)
        for ours in self._pipes:  # the parent's ends, so that a closed one is noticed here
            ours.close()
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the simulation has ended
            while True:
                asked = json.loads(pipe.recv_bytes())
                number = asked.pop("round")
                chunk = ChunkPlan(**{**asked, "clients": tuple(asked["clients"])})
                clients, senders = (self._read_states(pipe, *each) for each in self._owners(chunk))
                states = ChunkStates(clients if self._states.shapes else None, senders if self._kept.shapes else None)
                try:
                    self._send(pipe, self._train(chunk, number, states), clients, senders)
                except Diverged as error:
                    pipe.send_bytes(json.dumps({"diverged": [error.round_number, error.client]}).encode())
                except FedsimError as error:
                    pipe.send_bytes(json.dumps({"problem": str(error)}).encode())

    def _train(self, chunk: ChunkPlan, round_number: int, states: ChunkStates) -> Iterator[Update]:
        if self._trainer is None:
            self._trainer = ChunkTrainer(self._make_trainers(), self._strategy, self._pipeline)
        vector, downlink = split_received(self._strategy, self._shared)
        return self._trainer.train(chunk, round_number, vector, downlink, states)

    def _read_states(self, pipe: Connection, layout: Layout, owners: Sequence[int]) -> _StatesOfChunk:
        read = {owner: np.frombuffer(pipe.recv_bytes(), np.float32) for owner in owners}
        return _StatesOfChunk(layout, {owner: layout.views(vector) for owner, vector in read.items()})

    def _send(self, pipe: Connection, updates: Iterator[Update], *states: _StatesOfChunk) -> None:
        trained = [(update, self._update.flatten(update.arrays).copy()) for update in updates]
        described = [update.model_dump(mode="json") for update, _ in trained]
        written = [list(each.written) for each in states]
        pipe.send_bytes(json.dumps({"updates": described, "states": written}).encode())
        for _, vector in trained:
            pipe.send_bytes(vector.view(np.uint8).data)
        for each in states:
            for state in each.written.values():
                pipe.send_bytes(each.layout.flatten(state).view(np.uint8).data)
