"""The layout of a spool: the folders of one host, the paths in them, and the files that have arrived."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fedsim.errors import BadInput, Unavailable
from fedsim.problems import problems_text
from fedsim.spool.durable import make_folder
from fedsim.spool.files import Digest, FileId, Kind, NodeName, metadata_path
from fedsim.spool.format import check_format
from fedsim.spool.kinds import KINDS
from fedsim.spool.peer_queue import OUTGOING, SENT
from fedsim.spool.watch import Changes

INCOMING = ".incoming"
WANTED = "wanted"
CHECKPOINTS = "checkpoints"
MODEL_FILE = "model.npy"
"""The global model in a round's folder on the server."""
TENSORS_FILE = "tensors.json"
"""How many of the last numbers of the global model are statistics, and the digest of its frozen tensors, if any."""
BROADCAST_FILE = "broadcast.npy"
"""The global model with the strategy's arrays, where clients receive more than the model."""


class Metadata(BaseModel):
    """The metadata stored with a `.npy` file that arrived: its sender, digest and size, and what the sender added."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    sender: NodeName
    digest: Digest
    size: int
    meta: dict[str, Any] = {}


@dataclass(frozen=True)
class Arrived:
    """A committed file. `sender` is in the path of kinds that several hosts may send, else it is None."""

    id: FileId
    sender: str | None
    path: Path

    def metadata(self) -> Metadata:
        """Read the metadata of a `.npy` file; `BadInput` if it is not there or broken."""
        return read_metadata(self.path)


def read_metadata(path: Path) -> Metadata:
    """Read the metadata of the `.npy` file at `path`; `BadInput` if it is not there or broken."""
    metadata = metadata_path(path)
    try:
        return Metadata.model_validate_json(metadata.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        reason = problems_text(error) if isinstance(error, ValidationError) else error
        raise BadInput(f"{metadata} cannot be read as metadata of {path.name}: {reason}") from error


def read_present(items: Iterable[Arrived]) -> Iterator[tuple[Arrived, bytes]]:
    """Each file with its content, without those that another thread has removed in the meantime, with their task."""
    for item in items:
        try:
            content = item.path.read_bytes()
        except FileNotFoundError:
            continue
        yield item, content


class Spool:
    """The folders under one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / INCOMING
        self.wanting = root / WANTED
        self.outgoing = root / OUTGOING
        self.sent = root / SENT
        self.checkpoints = root / CHECKPOINTS

    def open(self) -> Self:
        """Check the format, and create the folders that are missing, readable by the owner only."""
        own = (self.incoming, self.wanting, self.outgoing, self.sent)
        try:
            check_format(self.root)
            for folder in (*own, *(self.folder(kind) for kind in Kind)):
                make_folder(folder)
        except OSError as error:
            raise Unavailable(
                f"the spool {self.root} cannot be used: {error.strerror} ({error.filename}); "
                "create it or give this user access"
            ) from error
        return self

    def folder(self, kind: Kind) -> Path:
        """The folder of one kind of file."""
        return self.root / kind.value

    def wanted(self, task: str) -> Path:
        """The file that lists what is expected of a task; see `spool.allowlist`."""
        return self.wanting / f"{task}.json"

    def path(self, file_id: FileId, sender: str) -> Path:
        """The path of the file with this id from this sender, whether or not it is there."""
        return self.root / file_id.path(sender)

    def identify(self, path: Path) -> Arrived | None:
        """Which file is at `path`; None if that is not the path of a committed file."""
        relative = path.relative_to(self.root).as_posix()
        try:
            kind = Kind(relative.split("/", 1)[0])
        except ValueError:
            return None
        fields: dict[str, Any] | None = KINDS[kind].path.parse(relative)
        if fields is None:
            return None
        sender = fields.pop("sender", None)
        return Arrived(FileId(kind=kind, **fields), sender, path)

    def arrived(self, kind: Kind, task: str | None = None, round_number: int | None = None) -> list[Arrived]:
        """The committed files of a kind, sorted by path: of all tasks, of one, or of one round of it."""
        spec = KINDS[kind]
        folder = self.root / spec.path.folder({"task": task, "round": round_number})
        found: list[Arrived] = []
        for path in sorted(folder.rglob("*.json" if spec.is_json else "*.npy")):
            item = self.identify(path)
            if item is not None and task in (None, item.id.task) and round_number in (None, item.id.round):
                found.append(item)
        return found

    def among(self, changes: Changes) -> list[Arrived]:
        """The committed files among the changes that a watch reported, sorted by path; lists new folders only."""
        paths = set(changes.files)
        for folder in changes.folders:
            with suppress(FileNotFoundError):  # cleared again
                paths.update(folder.iterdir())
        return [item for path in sorted(paths) if (item := self.identify(path)) is not None and path.exists()]
