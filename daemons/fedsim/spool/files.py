"""The identity of a file: its kind, and the task, round, chunk and client that it belongs to.

The receiver alone derives the path of a file, from these fields; a name from a peer is never a path.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.spool.kinds import KINDS, Kind, Role

__all__ = ["Digest", "FileHeader", "FileId", "Kind", "NodeName", "Role", "metadata_path"]

Uid = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
NodeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
MAX_FILE_BYTES = 2**50
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileId(BaseModel):
    """Which file: with its sender, the key under which a receiver knows what it already has.

    `round` is 0 for the initial model's evaluation. A `localparam` belongs to one chunk, and to one client of it where
    the strategy needs each client's parameters (else `client` is None and the file is the chunk's weighted mean).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    task: Uid | None = None
    round: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    chunk: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    client: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    part: Literal["data", "label"] | None = None
    phase: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")] | None = None

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        template = KINDS[self.kind].path
        for name in type(self).model_fields.keys() - {"kind"}:
            given = getattr(self, name) is not None
            if given and name not in template.required | template.optional:
                raise ValueError(f"a {self.kind} has no {name}")
            if not given and name in template.required:
                raise ValueError(f"a {self.kind} needs a {name}")
        return self

    @classmethod
    def model_of(cls, task: str, round_number: int) -> Self:
        """The `globalparam` that carries the model which a round made: that of the round after it.

        The next round trains on it; after the last round it is the final model.
        """
        return cls(kind=Kind.GLOBALPARAM, task=task, round=round_number + 1)

    @property
    def made_in(self) -> int:
        """The round that made the model of a `globalparam`."""
        return (self.round or 0) - 1

    def path(self, sender: str) -> PurePosixPath:
        """The path of the file, relative to the spool; its metadata has the same name with `.json` for `.npy`."""
        return KINDS[self.kind].path.format({**self.model_dump(), "sender": sender})


class FileHeader(BaseModel):
    """What a sender offers: the file's id, its exact size and blake3 digest, and small metadata for the daemon."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: FileId
    size: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    digest: Digest
    meta: dict[str, Any] = {}


def metadata_path(path: Path) -> Path:
    """The path of the metadata of the `.npy` file at `path`."""
    return path.with_suffix(".json")
