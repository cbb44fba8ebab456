"""What a node has measured of its speed: one JSON file in its spool, `speeds.json`.

A result is kept until the node's owner removes it (`fedsim-client speeds --renew`), or until it was made by another
version, torch, processor or configuration. The file is the record: one that was changed or removed is read again.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedsim.errors import BadInput, DamagedFile
from fedsim.log import get_logger
from fedsim.messages import MAX_SPEEDS, Message, Seconds, SpeedInfo, read_message
from fedsim.settings import OptionValues
from fedsim.speed import SpeedRequest
from fedsim.spool.durable import remove_file
from fedsim.spool.sealed import read_sealed, write_sealed

FILE = "speeds.json"


class MeasuredOn(Message):
    """What a measurement depends on besides what is trained; processors are those that this process may use."""

    version: str
    torch: str
    processor: str
    processors: int
    engine: str
    engine_options: OptionValues = Field({}, description="Of an engine that is fixed")
    threads: int | str
    workers: int | str


class MeasuredSpeed(Message):
    """One result, and when it was made (seconds since the epoch)."""

    speed: SpeedInfo
    request: SpeedRequest
    at: Seconds


class SpeedFile(Message):
    """The content of the file."""

    host: MeasuredOn
    measured: Annotated[tuple[MeasuredSpeed, ...], Field(max_length=MAX_SPEEDS)] = ()


def read_speeds(path: Path) -> SpeedFile | None:
    """The content of the file at `path`; None if there is none.

    Raises:
        BadInput: it is damaged, or of a version that this one does not understand.
    """
    try:
        content = read_sealed(path)
        return None if content is None else read_message(SpeedFile, content, path.name)
    except DamagedFile as error:
        raise BadInput(str(error)) from error


def renew_speeds(path: Path, keys: Collection[str] = ()) -> list[MeasuredSpeed]:
    """Remove the results with these keys, or with keys that begin so (none: all); returns them.

    A file that cannot be understood is removed.
    """
    try:
        content = read_speeds(path)
    except BadInput:
        content = None
    if content is None:
        remove_file(path)
        return []
    removed = [one for one in content.measured if not keys or one.speed.key.startswith(tuple(keys))]
    kept = tuple(one for one in content.measured if one not in removed)
    write_sealed(path, content.model_copy(update={"measured": kept}).model_dump(mode="json"))
    return removed


class SpeedTable:
    """The results that hold on this host, as it is now."""

    def __init__(self, path: Path, host: MeasuredOn) -> None:
        self.host = host
        self._path = path
        self._signature: tuple[int, ...] | None = ()
        self._measured: tuple[MeasuredSpeed, ...] = ()
        self._log = get_logger()

    @property
    def speeds(self) -> tuple[SpeedInfo, ...]:
        """The results, the newest last."""
        self._refresh()
        return tuple(one.speed for one in self._measured)

    def add(self, speed: SpeedInfo, request: SpeedRequest) -> None:
        """Durably add a result; the oldest ones give way."""
        self._refresh()
        others = [one for one in self._measured if one.speed.key != speed.key]
        measured = (*others, MeasuredSpeed(speed=speed, request=request, at=time.time()))[-MAX_SPEEDS:]
        content = SpeedFile(host=self.host, measured=measured)
        write_sealed(self._path, content.model_dump(mode="json"))
        self._refresh()

    def _refresh(self) -> None:
        """Read the file if it is another than the one that was read last."""
        try:
            found = self._path.stat()
            signature = (found.st_ino, found.st_mtime_ns, found.st_size)
        except FileNotFoundError:
            signature = None
        if signature == self._signature:
            return
        self._signature, self._measured = signature, ()
        try:
            content = read_speeds(self._path)
        except (BadInput, OSError) as error:
            self._log.warning("speeds_not_understood", problem=f"{error}: what is needed is measured again")
            return
        if content is not None and content.host == self.host:
            self._measured = content.measured
        elif content is not None and content.measured:
            self._log.info("speeds_outdated", number=len(content.measured), measured_on=content.host.model_dump())
