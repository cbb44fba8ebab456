"""The exceptions of fedsim; each has the exit code (sysexits.h) with which a command or daemon ends.

A message says what happened, to what, and what to do next.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import ClassVar

EX_OK = 0
EX_FAILED = 1
EX_USAGE = 64
EX_DATA = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_IO = 74
EX_TRY_AGAIN = 75
EX_NO_PERMISSION = 77
EX_CONFIG = 78
EX_INTERRUPTED = 130
EX_PIPE = 141


class SuspendReason(StrEnum):
    """Why a daemon suspends its tasks: the name of the log event, and what the progress of a task shows."""

    DISK_FULL = "disk_full"
    DATABASE_LOST = "database_lost"
    HOST_TROUBLE = "host_trouble"

    @property
    def words(self) -> str:
        """The reason as text."""
        return self.value.replace("_", " ")


class FedsimError(Exception):
    """Base class of all exceptions that fedsim raises deliberately."""

    exit_code = EX_SOFTWARE


class ConfigError(FedsimError):
    """A configuration file is invalid; `problems` lists every error with its path and what would be valid."""

    exit_code = EX_CONFIG

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{source} cannot be used:\n{lines}")


class BadInput(FedsimError):  # noqa: N818 - the name describes the cause
    """Data or settings from a user are invalid; the message can be shown to the user."""

    exit_code = EX_DATA


class NotThere(FedsimError):  # noqa: N818
    """An object that the user named does not exist: a file, a task, a user."""

    exit_code = EX_NOINPUT


class Unavailable(FedsimError):  # noqa: N818
    """An external resource is not available: a port is in use, the database does not answer."""

    exit_code = EX_UNAVAILABLE
    # Of what a running task needs, only the database raises this class itself.
    suspend_reason: ClassVar[SuspendReason] = SuspendReason.DATABASE_LOST


class HostUnavailable(Unavailable):
    """This host cannot serve any task at present. `folder` is the one that must become writable, if it is known."""

    def __init__(self, message: str, folder: Path | None = None) -> None:
        self.folder = folder
        super().__init__(message)


class DiskFull(HostUnavailable):
    """The disk of this host is full; the operation can be repeated when there is space."""

    suspend_reason = SuspendReason.DISK_FULL


class HostTrouble(HostUnavailable):
    """The operating system cannot serve any task of this host: a disk fails, descriptors or memory ran out."""

    suspend_reason = SuspendReason.HOST_TROUBLE


class DamagedFile(FedsimError):  # noqa: N818
    """A file of a task is no longer what was written: a disk or a person has changed it."""

    exit_code = EX_DATA

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        super().__init__(f"{path} is damaged: {what}; check this host's disk, and submit the task again")


class WatchLimit(FedsimError):  # noqa: N818
    """The kernel's limit of watched folders is reached. An administrator must raise it; waiting does not help."""

    exit_code = EX_UNAVAILABLE


class Refused(FedsimError):  # noqa: N818
    """The peer refused. `code` is one of the wire's refusal codes; `retry` says whether a later attempt may succeed.

    `who` is the name in the certificate of the refused peer, if the lab's authority has signed it.
    """

    exit_code = EX_NO_PERMISSION

    def __init__(self, code: str, message: str, *, retry: bool = False, who: str | None = None) -> None:
        self.code = code
        self.retry = retry
        self.who = who
        super().__init__(message)
