"""Bulkheads: an exception while serving one task ends that task alone.

What concerns every task of the host – a full disk, a failing one, a database that is gone – passes through as
`Unavailable`, upon which the daemon suspends all tasks.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fedsim.errors import HostTrouble, Unavailable
from fedsim.log import get_logger
from fedsim.spool.disk_space import full_disk_errors
from fedsim.wire.sender import SenderFailedError

_HOST: Final = frozenset({errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@contextmanager
def host_trouble() -> Iterator[None]:
    """Turn errors of the operating system that concern every task into `Unavailable`; all others pass unchanged."""
    try:
        with full_disk_errors():
            yield
    except OSError as error:
        if error.errno not in _HOST:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise HostTrouble(f"{error.strerror}{where}: check this host; tasks continue as soon as it works") from error


@contextmanager
def bulkhead(fail: Callable[[str], None]) -> Iterator[None]:
    """Contain an exception: log its traceback, and call `fail` with a reason for the task's owner."""
    try:
        with host_trouble():
            yield
    except (Unavailable, SenderFailedError):
        raise
    except Exception as error:  # noqa: BLE001 - one of the few boundaries at which every exception is caught
        problem = f"{type(error).__name__}: {error}"
        get_logger().exception("internal_error", problem=problem)
        fail(f"an internal error of fedsim ({problem}); the traceback is in this host's journal")
