"""The updates of a round: which are expected from which node, which have arrived, when they are enough, the roster."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from math import ceil

from fedsim.messages import Broadcast, Chunk, Uplink
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task_events import SendGlobal, WriteRoster
from fedsim.state_machines.transitions import Transition, TransitionTable
from fedsim.update import Update

Key = tuple[int, int | None]  # chunk; client, where each sends an update of its own


class RoundPhase(StrEnum):
    """What a round is waiting for."""

    COLLECTING = "collecting"
    OVERDUE = "overdue"
    CLOSED = "closed"


ROUND_TRANSITIONS = TransitionTable(
    (RoundPhase.COLLECTING,),
    (
        Transition(RoundPhase.COLLECTING, RoundPhase.OVERDUE, ("deadline",), "too few updates at the deadline"),
        Transition(
            RoundPhase.COLLECTING,
            RoundPhase.CLOSED,
            ("enough", "roster restored"),
            "all updates that count, or enough at the deadline",
        ),
        Transition(RoundPhase.OVERDUE, RoundPhase.CLOSED, ("enough",), "enough updates"),
    ),
)


class RoundCollector:
    """Collects the updates of one round, from its broadcast until its roster is written.

    Args:
        plan: of the task.
        number: of the round.
        counts: number of examples of each client.
        deadline: after it, enough updates close the round.
        absent: nodes from which nothing is expected; an update that arrives from them counts all the same.
        cohort: of the round, where it does not follow from the plan alone.
    """

    def __init__(
        self,
        plan: Plan,
        number: int,
        counts: Sequence[int],
        deadline: float,
        absent: Collection[str],
        cohort: tuple[int, ...] = (),
    ) -> None:
        self.number = number
        self.deadline = deadline
        self.cohort = cohort
        self.phase = RoundPhase.COLLECTING
        self._plan = plan
        self._counts = counts
        self._chunks = {chunk.id: chunk for chunk in plan.chunks(number, cohort)}
        self._expected: frozenset[Key]
        if plan.uplink == Uplink.SUM:
            self._expected = frozenset((chunk_id, None) for chunk_id in self._chunks)
        else:
            self._expected = frozenset(
                (chunk.id, client) for chunk in self._chunks.values() for client in chunk.clients
            )
        self._arrived: dict[Key, Update] = {}
        # Of more clients than the cohort is to have, the first to answer count.
        self._sufficient = min(plan.settings.cohort_size, sum(len(chunk.clients) for chunk in self._chunks.values()))
        # Rounded, because 0.7 of 10 clients are 7.000000000000001.
        self._needed = max(plan.least_updates, ceil(round(self._sufficient * plan.settings.min_responses, 6)))
        self._answered = 0
        self._absent = set(absent)
        self._update_awaited()

    @property
    def complete(self) -> bool:
        """Whether everything that is expected has arrived, or as many clients as are sufficient have answered."""
        return not self._awaited or self._answered >= self._sufficient

    @property
    def hopeless(self) -> bool:
        """Whether too few of the cohort's clients can answer, even if everything that is still expected arrives."""
        return self._reachable < self._needed

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The nodes from which an update is expected, in the plan's order."""
        missing = {self._node_of(chunk) for chunk, _ in self._awaited}
        return tuple(node for node in self._plan.nodes if node in missing)

    @property
    def closed(self) -> bool:
        """Whether the roster is fixed: no further update counts."""
        return self.phase is RoundPhase.CLOSED

    @property
    def wake_at(self) -> float | None:
        """The deadline; None once it has passed: then only an update can close the round, not time."""
        return self.deadline if self.phase is RoundPhase.COLLECTING else None

    @property
    def untouched(self) -> bool:
        """Whether nothing has happened since the round was opened."""
        return self.phase is RoundPhase.COLLECTING and not self._arrived

    def exclude(self, node: str) -> None:
        """Expect nothing more from a node."""
        self._absent.add(node)
        self._update_awaited()

    def include(self, node: str) -> None:
        """Expect a node's updates again."""
        self._absent.discard(node)
        self._update_awaited()

    def expects(self, update: Update) -> bool:
        """Whether this update is one of the round's, from the node that trains it."""
        expected = update.base_round == self.number and (update.chunk, update.client) in self._expected
        return expected and self._node_of(update.chunk) == update.node

    def add(self, update: Update) -> bool:
        """Add an expected update; returns False if it had arrived before."""
        key = (update.chunk, update.client)
        if key in self._arrived:
            return False
        self._arrived[key] = update
        self._answered += self._clients([key])
        if key in self._awaited:
            self._awaited.discard(key)
        else:
            self._reachable += self._clients([key])
        return True

    def enough(self, now: float) -> bool:
        """Whether the deadline has passed and enough of the cohort's clients have answered."""
        if now < self.deadline:
            return False
        if self._answered >= self._needed:
            return True
        self._move(RoundPhase.OVERDUE, "deadline")
        return False

    def reopen_with(self, roster: WriteRoster) -> None:  # noqa: ARG002
        """Continue after a restart that found the round's roster."""
        self._move(RoundPhase.CLOSED, "roster restored")

    def close(self) -> WriteRoster:
        """Fix what counts, which is what has arrived: the roster in canonical order."""
        self._move(RoundPhase.CLOSED, "enough")
        updates = tuple(self._counted(update) for update in sorted(self._arrived.values(), key=lambda one: one.place))
        missing = [client for key in self._expected - set(self._arrived) for client in self._clients_behind(key)]
        return WriteRoster(self.number, updates, tuple(sorted(missing)), self.cohort)

    def broadcast(self, node: str) -> SendGlobal | None:
        """The round's model for a node, and what it trains; None if that is nothing, or nothing is expected from it."""
        if node in self._absent:
            return None
        index = self._plan.nodes.index(node)
        chunks = tuple(
            Chunk(id=chunk.id, clients=chunk.clients) for chunk in self._chunks.values() if chunk.node == index
        )
        if not chunks:
            return None
        return SendGlobal(node, self.number, Broadcast(chunks=chunks, used_through=self.number - 1))

    def _move(self, target: RoundPhase, trigger: str) -> None:
        self.phase = ROUND_TRANSITIONS.move(self.phase, target, trigger)

    def _update_awaited(self) -> None:
        """What is awaited, and how many of the cohort's clients have answered or are awaited."""
        self._awaited = {
            key for key in self._expected - set(self._arrived) if self._node_of(key[0]) not in self._absent
        }
        self._reachable = self._answered + self._clients(self._awaited)

    def _clients(self, keys: Iterable[Key]) -> int:
        return sum(len(self._clients_behind(key)) for key in keys)

    def _counted(self, update: Update) -> Update:
        """The update with the counts that were fixed before round 1: those that it reports are not trusted."""
        clients = self._clients_behind((update.chunk, update.client))
        num_examples = sum(self._counts[client] for client in clients)
        return update.model_copy(update={"num_clients": len(clients), "num_examples": num_examples})

    def _node_of(self, chunk: int) -> str:
        return self._plan.nodes[self._chunks[chunk].node]

    def with_clients(self, updates: Iterable[Update]) -> list[tuple[Update, tuple[int, ...]]]:
        """Updates of the round, each with the clients behind it."""
        return [(update, self._clients_behind((update.chunk, update.client))) for update in updates]

    def lost(self, missing: Collection[int]) -> tuple[int, int]:
        """The examples of the clients that were `missing` in the round, and of all that were chosen.

        None are missing where as many clients answered as are sufficient: more were chosen so that some can be late.
        """
        chosen = [client for chunk in self._chunks.values() for client in chunk.clients]
        expected = sum(self._counts[client] for client in chosen)
        if len(chosen) - len(missing) >= self._sufficient:
            return 0, expected
        return sum(self._counts[client] for client in missing), expected

    def _clients_behind(self, key: Key) -> tuple[int, ...]:
        chunk, client = key
        return self._chunks[chunk].clients if client is None else (client,)
