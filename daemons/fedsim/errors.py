"""One small tree of errors; each carries the exit code (sysexits.h) with which a command or daemon ends.

A message says what happened, to what, and what to do next.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

EX_OK = 0
EX_FAILED = 1
EX_USAGE = 64
EX_DATA = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_TRY_AGAIN = 75
EX_NO_PERMISSION = 77
EX_CONFIG = 78


class SuspendReason(StrEnum):
    """Why a daemon suspends its tasks: the name of the log event, and what the progress of a task shows."""

    DISK_FULL = "disk_full"
    DATABASE_LOST = "database_lost"
    HOST_TROUBLE = "host_trouble"

    @property
    def words(self) -> str:
        """The reason in words."""
        return self.value.replace("_", " ")


class FedsimError(Exception):
    """Base of every error that fedsim raises on purpose."""

    exit_code = EX_SOFTWARE


class ConfigError(FedsimError):
    """A configuration file cannot be used; `problems` names every place and what would be right there."""

    exit_code = EX_CONFIG

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{source} cannot be used:\n{lines}")


class BadInput(FedsimError):  # noqa: N818 - what it is, not that it is an error, helps the reader
    """Data or settings that somebody gave cannot be used; the message can be shown to that person."""

    exit_code = EX_DATA


class NotThere(FedsimError):  # noqa: N818
    """What somebody named does not exist: a file, a task, a user."""

    exit_code = EX_NOINPUT


class Unavailable(FedsimError):  # noqa: N818
    """Something outside fedsim that it needs is not there: a port in use, a database that does not answer."""

    exit_code = EX_UNAVAILABLE
    # Of what a running task needs, only the database raises this class itself.
    suspend_reason: ClassVar[SuspendReason] = SuspendReason.DATABASE_LOST


class DiskFull(Unavailable):
    """There is no room on this host's disk; what was under way can be done again when there is."""

    suspend_reason = SuspendReason.DISK_FULL


class HostTrouble(Unavailable):
    """The operating system cannot serve any task of this host: a disk fails, descriptors or memory ran out."""

    suspend_reason = SuspendReason.HOST_TROUBLE


class WatchLimit(FedsimError):  # noqa: N818
    """The kernel lets this user watch no more folders. Not a thing to wait for: somebody must raise the limit."""

    exit_code = EX_UNAVAILABLE


class Refused(FedsimError):  # noqa: N818
    """The other side said no. `code` is one of the wire's refusal codes; `retry` says whether later may succeed.

    `who` is the name in the certificate of whoever was refused, where the lab's authority has signed it.
    """

    exit_code = EX_NO_PERMISSION

    def __init__(self, code: str, message: str, *, retry: bool = False, who: str | None = None) -> None:
        self.code = code
        self.retry = retry
        self.who = who
        super().__init__(message)
