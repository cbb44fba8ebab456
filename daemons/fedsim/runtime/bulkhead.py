"""Bulkheads: an exception while serving one task ends that task alone.

What concerns every task of the host – a full disk, a failing one, a database that is gone – passes through as
`Unavailable`, upon which the daemon suspends all tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedsim.errors import FedsimError, Unavailable
from fedsim.log import get_logger
from fedsim.spool.host_errors import host_errors
from fedsim.wire.sender import SenderFailedError


class Restarts:
    """How far each task was when an unexpected exception last interrupted it."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {}

    def allow(self, uid: str, progress: int) -> bool:
        """Whether the task is resumed from disk: once, and again only after a further round."""
        if progress <= self._at.get(uid, -2):
            return False
        self._at[uid] = progress
        return True

    def forget(self, uid: str) -> None:
        """The task has ended."""
        self._at.pop(uid, None)


@contextmanager
def bulkhead(fail: Callable[[str], None], unexpected: Callable[[str], None] | None = None) -> Iterator[None]:
    """Contain an exception: log it, and call a function with a reason for the task's owner.

    Args:
        fail: is called for what fedsim itself reports.
        unexpected: is called for every other exception; None: `fail` as well.
    """
    try:
        with host_errors():
            yield
    except (Unavailable, SenderFailedError):
        raise
    except FedsimError as error:  # its message says what happened, and what to do
        get_logger().error("task_cannot_continue", problem=str(error))
        fail(str(error))
    except Exception as error:  # noqa: BLE001 - one of the few boundaries at which every exception is caught
        problem = f"{type(error).__name__}: {error}"
        get_logger().exception("internal_error", problem=problem)
        (unexpected or fail)(f"an internal error of fedsim ({problem}); the traceback is in this host's journal")
