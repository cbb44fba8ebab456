"""Where things lie in a spool: the folders of one host, their names, and what has arrived in them."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fedsim.errors import BadInput, Unavailable
from fedsim.spool.durable import make_folder
from fedsim.spool.files import JSON_KINDS, Digest, FileId, Kind, NodeName, metadata_path
from fedsim.spool.format import check_format
from fedsim.spool.watch import Changes

INCOMING = ".incoming"
WANTED = "wanted"
MODEL_FILE = "model.npy"
"""The global model in a round's folder on the server."""

_NAME = r"(?P<sender>[A-Za-z0-9][A-Za-z0-9_.-]{0,63}?)"
_PLACES: dict[Kind, re.Pattern[str]] = {
    Kind.HELLO: re.compile(rf"hello/{_NAME}\.json"),
    Kind.INITPARAM: re.compile(r"initparam/(?P<task>[0-9a-f]{32})\.json"),
    Kind.STOP: re.compile(r"stop/(?P<task>[0-9a-f]{32})\.json"),
    Kind.TESTSET: re.compile(rf"testset/(?P<task>[0-9a-f]{{32}})/{_NAME}\.test(?P<part>data|label)\.npy"),
    Kind.GLOBALPARAM: re.compile(r"globalparam/(?P<task>[0-9a-f]{32})/round-(?P<round>\d{6,7})\.npy"),
    Kind.LOCALPARAM: re.compile(
        rf"localparam/(?P<task>[0-9a-f]{{32}})/round-(?P<round>\d{{6,7}})/"
        rf"{_NAME}\.chunk-(?P<chunk>\d{{6,7}})(\.client-(?P<client>\d{{6,7}}))?\.npy"
    ),
}


class Metadata(BaseModel):
    """What lies beside a `.npy` file that arrived: who sent it, its digest and size, and the sender's own words."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    sender: NodeName
    digest: Digest
    size: int
    meta: dict[str, Any] = {}


@dataclass(frozen=True)
class Arrived:
    """A committed file. `sender` stands in the name of kinds that several may send, else it is None."""

    id: FileId
    sender: str | None
    path: Path

    def metadata(self) -> Metadata:
        """Read the metadata of a `.npy` file; `BadInput` if it is not there or broken."""
        return read_metadata(self.path)


def read_metadata(path: Path) -> Metadata:
    """Read the metadata beside the `.npy` file at `path`; `BadInput` if it is not there or broken."""
    beside = metadata_path(path)
    try:
        return Metadata.model_validate_json(beside.read_bytes())
    except (OSError, ValidationError) as error:
        raise BadInput(f"{beside} cannot be read as metadata of {path.name}: {error}") from error


class Spool:
    """The folders under one root. Making one creates what is missing, readable by the owner only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / INCOMING
        self.wanting = root / WANTED
        try:
            check_format(root)
            for folder in (self.incoming, self.wanting, *(self.folder(kind) for kind in Kind)):
                make_folder(folder)
        except OSError as error:
            raise Unavailable(
                f"the spool {root} cannot be used: {error.strerror} ({error.filename}); "
                "create it or give this user access"
            ) from error

    def folder(self, kind: Kind) -> Path:
        """The folder of one kind of file."""
        return self.root / kind.value

    def wanted(self, task: str) -> Path:
        """Where it stands what of a task is waited for; see `spool.wanted`."""
        return self.wanting / f"{task}.json"

    def path(self, file_id: FileId, sender: str) -> Path:
        """Where the file of this id from this sender lies, or would lie."""
        return self.root / file_id.place(sender)

    def identify(self, path: Path) -> Arrived | None:
        """What the file at `path` is; None if its name is not that of a committed file."""
        place = path.relative_to(self.root).as_posix()
        try:
            match = _PLACES[Kind(place.split("/", 1)[0])].fullmatch(place)
        except ValueError:
            return None
        if match is None:
            return None
        fields: dict[str, Any] = {name: value for name, value in match.groupdict().items() if value is not None}
        sender = fields.pop("sender", None)
        for name in ("round", "chunk", "client"):
            if name in fields:
                fields[name] = int(fields[name])
        file_id = FileId(kind=Kind(place.split("/", 1)[0]), **fields)
        return Arrived(file_id, sender, path)

    def arrived(self, kind: Kind, task: str | None = None, round_number: int | None = None) -> list[Arrived]:
        """The committed files of a kind, sorted by path: of all tasks, of one, or of one round of it."""
        found: list[Arrived] = []
        suffix = "json" if kind in JSON_KINDS else "npy"
        for path in sorted(self._search_root(kind, task, round_number).rglob(f"*.{suffix}")):
            item = self.identify(path)
            if item is not None and task in (None, item.id.task) and round_number in (None, item.id.round):
                found.append(item)
        return found

    def among(self, changes: Changes) -> list[Arrived]:
        """The committed files that a watch's changes stand for, sorted by path: as many looks as files came."""
        paths = set(changes.files)
        for folder in changes.folders:
            with suppress(FileNotFoundError):  # cleared again
                paths.update(folder.iterdir())
        return [item for path in sorted(paths) if (item := self.identify(path)) is not None and path.exists()]

    def _search_root(self, kind: Kind, task: str | None, round_number: int | None) -> Path:
        folder = self.folder(kind)
        if kind in JSON_KINDS or task is None:
            return folder
        folder /= task
        if kind is Kind.LOCALPARAM and round_number is not None:
            folder /= f"round-{round_number:06d}"
        return folder
