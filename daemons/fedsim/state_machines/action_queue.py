"""The order in which a task's events are handled and its actions are carried out.

What must be durable is stored while other tasks continue. Until it is, the task's queue is held: no action that follows
is carried out (nothing is sent, computed or cleared because of it), and events wait. So a crash finds on disk
everything that its machine's later actions relied upon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Action = TypeVar("Action")


class ActionQueue(Generic[Action]):
    """The events and actions of one task.

    Args:
        carry_out: carries out one action; may add further steps and hold the queue.
    """

    def __init__(self, carry_out: Callable[[Action], None]) -> None:
        self._carry_out = carry_out
        self._actions: deque[Action] = deque()
        self._first: deque[Callable[[], Iterable[Action]]] = deque()
        self._steps: deque[Callable[[], Iterable[Action]]] = deque()
        self._holds = 0
        self._running = False

    @property
    def held(self) -> bool:
        """Whether something is being stored that everything else waits for."""
        return self._holds > 0

    def add(self, step: Callable[[], Iterable[Action]]) -> None:
        """Take a step in its turn, such as the handling of an event, and then carry out the actions that it returns."""
        self._steps.append(step)
        self.run()

    def add_first(self, step: Callable[[], Iterable[Action]]) -> None:
        """Take a step before all actions and steps that wait."""
        self._first.append(step)
        self.run()

    def hold(self) -> None:
        """Carry out nothing more until `release` was called as often as this method."""
        self._holds += 1

    def release(self, follow: Callable[[], Iterable[Action]]) -> None:
        """What the queue was held for is stored: as soon as it is not held any more, take the step `follow` first."""
        self._holds -= 1
        self.add_first(follow)

    def run(self) -> None:
        """Carry out what is due. An exception passes through; then the actions that followed are dropped."""
        if self._running:
            return
        self._running = True
        try:
            while not self.held and (self._first or self._actions or self._steps):
                if self._first:
                    self._actions.extendleft(reversed(tuple(self._first.popleft()())))
                elif self._actions:
                    self._carry_out(self._actions.popleft())
                else:
                    self._actions.extend(self._steps.popleft()())
        except BaseException:
            self._actions.clear()
            raise
        finally:
            self._running = False
