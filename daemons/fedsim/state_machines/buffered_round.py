"""Asynchronous rounds on the server: what has arrived, whichever round it began in, and when it is enough.

An update is used once, and discarded if it is too stale. Which updates were used is stored with each commit, so that
one that a node offers again after a restart does not count twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import ceil

from fedsim.learning.buffering import Buffering
from fedsim.messages import Broadcast
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.round import RoundCollector, RoundPhase
from fedsim.state_machines.task_events import Action, ClearUpdates, DiscardUpdate, RecordEvent, SendGlobal, WriteRoster
from fedsim.state_machines.task_record import UsedKey
from fedsim.update import Update


def key_of(update: Update) -> UsedKey:
    """The round in which it began, its chunk, and its client."""
    return update.base_round, update.chunk, -1 if update.client is None else update.client


class UpdateBuffer:
    """The updates that have arrived and are not used yet, in the order of their arrival, over all rounds of a task.

    Args:
        plan: of the task.
        buffering: its K, M and maximum staleness.
        used: what committed rounds used, as far as it could come again.
        arrived: what is not used yet.
    """

    def __init__(
        self, plan: Plan, buffering: Buffering, used: Iterable[UsedKey] = (), arrived: Iterable[Update] = ()
    ) -> None:
        self.waiting = {key_of(update): update for update in arrived}
        self._plan = plan
        self._buffering = buffering
        self._used = set(used)
        self._summed: set[UsedKey] = set()
        self._asked: dict[int, dict[int, tuple[str, int]]] = {}
        self._reported: set[UsedKey] = set()  # the updates whose discarding was recorded; nodes offer them again

    @property
    def size(self) -> int:
        """K."""
        return self._buffering.size

    @property
    def used(self) -> tuple[UsedKey, ...]:
        """What committed rounds used, as far as it could come again."""
        return tuple(sorted(self._used))

    def used_of(self, node: str, after: int) -> tuple[tuple[int, int], ...]:
        """The same of a node, as (round, chunk), without those that began in rounds up to `after`."""
        recent = ((base, chunk) for base, chunk, _ in self.used if base > after)
        return tuple((base, chunk) for base, chunk in recent if self._asked_in(base).get(chunk, ("", 0))[0] == node)

    def oldest(self, number: int) -> int:
        """The first round in which an update can have begun that round `number` uses."""
        return max(1, number - self._buffering.max_staleness)

    def arrived(self, update: Update, number: int) -> list[Action]:
        """Keep an update that round `number` or a later one can use; returns what is to be done with any other."""
        key = key_of(update)
        if key in self.waiting or key in self._summed:
            return []
        asked = self._asked_in(update.base_round).get(update.chunk) if 1 <= update.base_round <= number else None
        if key in self._used or asked is None or asked != (update.node, update.client):
            return [DiscardUpdate(update)]
        if update.base_round < self.oldest(number):
            return self._discard(update, number)
        self.waiting[key] = update
        return []

    def take(self, count: int) -> tuple[Update, ...]:
        """The first ones, at most `count`, which a round is about to sum."""
        taken = tuple(self.waiting.values())[:count]
        self.summing(taken)
        return taken

    def summing(self, updates: Iterable[Update]) -> None:
        """These are in the roster of the round that is being summed: their files stay."""
        for update in updates:
            self.waiting.pop(key_of(update), None)
            self._summed.add(key_of(update))

    def commit(self) -> None:
        """The round that was being summed is committed."""
        self._used |= self._summed
        self._summed.clear()

    def clear(self, number: int, updates: Sequence[Update]) -> list[Action]:
        """After the commit of round `number`: remove the files of what it used, and of what no round can use any more.

        Args:
            number: of the round.
            updates: that it used.
        """
        oldest = self.oldest(number + 1)
        actions: list[Action] = [DiscardUpdate(update) for update in updates]
        for key, update in list(self.waiting.items()):
            if update.base_round < oldest:
                del self.waiting[key]
                actions += self._discard(update, number + 1)
        # One round longer: a crash between the commit and the removal of files leaves those of used updates here.
        self._used = {key for key in self._used if key[0] >= oldest - 1}
        self._asked = {base: asked for base, asked in self._asked.items() if base >= oldest}
        return [*actions, ClearUpdates(oldest - 1)] if oldest > 1 else actions

    def _discard(self, update: Update, number: int) -> list[Action]:
        staleness = number - update.base_round
        text = (
            f"the update of client {update.client} from {update.node}, which began in round {update.base_round}, is "
            f"discarded: in round {number} its staleness is {staleness}, at most {self._buffering.max_staleness} counts"
        )
        if key_of(update) in self._reported:
            return [DiscardUpdate(update)]
        self._reported.add(key_of(update))
        return [DiscardUpdate(update), RecordEvent("stale", text)]

    def _asked_in(self, base_round: int) -> dict[int, tuple[str, int]]:
        """(node, client) of each chunk that nodes may train from a round's model."""
        if base_round not in self._asked:
            chunks = self._plan.chunks(base_round)
            self._asked[base_round] = {chunk.id: (self._plan.nodes[chunk.node], chunk.clients[0]) for chunk in chunks}
        return self._asked[base_round]


class BufferedRound(RoundCollector):
    """An asynchronous round: it closes as soon as K updates are in the buffer, whichever rounds they began in.

    Each node is given as many of its clients as a whole buffer needs, and trains them in order until it gets the next
    model; what it has begun by then it completes, for a later round.
    """

    def __init__(
        self,
        plan: Plan,
        number: int,
        counts: Sequence[int],
        deadline: float,
        absent: Collection[str],
        buffer: UpdateBuffer,
    ) -> None:
        self._buffer = buffer
        self._closed_with: tuple[Update, ...] = ()
        super().__init__(plan, number, counts, deadline, absent)
        self._sufficient = buffer.size
        self._needed = max(plan.least_updates, ceil(round(buffer.size * plan.settings.min_responses, 6)))

    @property
    def complete(self) -> bool:
        """Whether the buffer is full."""
        return len(self._buffer.waiting) >= self._sufficient

    @property
    def hopeless(self) -> bool:
        """Whether the buffer cannot be filled, even if all nodes that are present train all of their clients."""
        return len(self._buffer.waiting) + len(self._still_awaited()) < self._needed

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """The nodes that are present and have not sent all that they can, in the plan's order."""
        missing = {self._node_of(chunk) for chunk in self._still_awaited()}
        return tuple(node for node in self._plan.nodes if node in missing)

    @property
    def untouched(self) -> bool:
        """Whether it is open: what has arrived is not of this round alone, and is stored apart."""
        return self.phase is RoundPhase.COLLECTING

    def enough(self, now: float) -> bool:
        """Whether the deadline has passed and enough updates are in the buffer."""
        self._answered = len(self._buffer.waiting)
        return super().enough(now)

    def reopen_with(self, roster: WriteRoster) -> None:
        """Continue after a restart that found the round's roster."""
        self._closed_with = roster.updates
        self._buffer.summing(roster.updates)
        super().reopen_with(roster)

    def close(self) -> WriteRoster:
        """Fix what counts: the first updates of the buffer, in the order of their arrival."""
        self._move(RoundPhase.CLOSED, "enough")
        self._closed_with = tuple(self._counted(update) for update in self._buffer.take(self._sufficient))
        return WriteRoster(self.number, self._closed_with, ())

    def broadcast(self, node: str) -> SendGlobal | None:
        """The round's model for a node, with the clients that it trains until the next one."""
        sent = super().broadcast(node)
        if sent is None:
            return None
        through = self._buffer.oldest(self.number) - 1
        used = self._buffer.used_of(node, after=through)
        return SendGlobal(node, self.number, Broadcast(chunks=sent.broadcast.chunks, used_through=through, used=used))

    def lost(self, missing: Collection[int]) -> tuple[int, int]:  # noqa: ARG002
        """No client is missing where none is awaited; the examples of the clients that counted."""
        return 0, sum(update.num_examples for update in self._closed_with)

    def _still_awaited(self) -> list[int]:
        """The chunks of this round that have not arrived from nodes that are present."""
        arrived = {chunk for base, chunk, _ in self._buffer.waiting if base == self.number}
        return [chunk for chunk in self._chunks if chunk not in arrived and self._node_of(chunk) not in self._absent]
