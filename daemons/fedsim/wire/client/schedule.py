"""The transfers to one peer, indexed by what they wait for. Reads no clock: the time is passed in."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from fedsim.wire.client.transfer import Transfer


class TransferSchedule:
    """Finds the transfers that are due without looking at the others."""

    def __init__(self) -> None:
        # Dictionaries as ordered sets: a transfer is removed without a search.
        self._transfers: dict[Transfer, None] = {}
        self._ready: dict[Transfer, None] = {}
        self._refused: dict[Transfer, None] = {}
        self._timers: list[tuple[float, int, Transfer, bool]] = []
        self._sequence = itertools.count()

    def __contains__(self, transfer: Transfer) -> bool:
        """Whether a transfer has not ended."""
        return transfer in self._transfers

    def __iter__(self) -> Iterator[Transfer]:
        """All transfers, oldest first."""
        return iter(list(self._transfers))

    def __len__(self) -> int:
        """The number of transfers that have not ended."""
        return len(self._transfers)

    def add(self, transfer: Transfer) -> None:
        """Add a transfer, which is not ready yet."""
        self._transfers[transfer] = None
        if transfer.give_up_at is not None:
            self._push(transfer.give_up_at, transfer, gives_up=True)

    def remove(self, transfer: Transfer) -> None:
        """Remove a transfer that has ended."""
        for index in (self._transfers, self._ready, self._refused):
            index.pop(transfer, None)
        self._discard_ended()

    def set_ready(self, transfer: Transfer) -> None:
        """Offer a transfer as soon as there is a connection."""
        if transfer in self._transfers:
            self._ready[transfer] = None

    def retry_at(self, transfer: Transfer, when: float) -> None:
        """Offer a refused transfer again at this time."""
        self._refused[transfer] = None
        self._push(when, transfer, gives_up=False)

    def take_ready(self) -> list[Transfer]:
        """The transfers to offer now."""
        ready = list(self._ready)
        self._ready.clear()
        return ready

    def take_expired(self, now: float) -> list[Transfer]:
        """The transfers whose time is over; refused ones whose pause is over become ready."""
        expired = []
        while self._timers and self._timers[0][0] <= now:
            _, _, transfer, gives_up = heapq.heappop(self._timers)
            if transfer in self._transfers:
                if gives_up:
                    expired.append(transfer)
                else:
                    self._ready[transfer] = None
        self._discard_ended()
        return expired

    @property
    def refused(self) -> Transfer | None:
        """The oldest transfer that was refused and is retried."""
        return next(iter(self._refused), None)

    @property
    def deadline(self) -> float | None:
        """When `take_expired` must be called."""
        return self._timers[0][0] if self._timers else None

    def _push(self, when: float, transfer: Transfer, *, gives_up: bool) -> None:
        heapq.heappush(self._timers, (when, next(self._sequence), transfer, gives_up))

    def _discard_ended(self) -> None:
        while self._timers and self._timers[0][2] not in self._transfers:
            heapq.heappop(self._timers)
