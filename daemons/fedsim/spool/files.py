"""What a file in the spool is: its kind, whose it is, where it lies, and who may send it to whom.

The receiver alone decides where a file lies, from these fields; a name from a peer is never a path.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Uid = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
NodeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
MAX_FILE_BYTES = 2**50
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Role(StrEnum):
    """Who a peer is."""

    SERVER = "server"
    CLIENT = "client"
    WEB = "web"


class Kind(StrEnum):
    """What a file is for."""

    HELLO = "hello"
    INITPARAM = "initparam"
    TESTSET = "testset"
    GLOBALPARAM = "globalparam"
    LOCALPARAM = "localparam"
    STOP = "stop"


# (sender, receiver) -> what may pass. All else is refused.
PERMITTED: dict[tuple[Role, Role], frozenset[Kind]] = {
    (Role.WEB, Role.SERVER): frozenset({Kind.INITPARAM, Kind.STOP}),
    (Role.SERVER, Role.CLIENT): frozenset({Kind.INITPARAM, Kind.GLOBALPARAM, Kind.STOP}),
    (Role.CLIENT, Role.SERVER): frozenset({Kind.HELLO, Kind.LOCALPARAM, Kind.TESTSET}),
}
JSON_KINDS = frozenset({Kind.HELLO, Kind.INITPARAM, Kind.STOP})


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

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> Self:
        needed = {
            Kind.HELLO: set(),
            Kind.INITPARAM: {"task"},
            Kind.STOP: {"task"},
            Kind.TESTSET: {"task", "part"},
            Kind.GLOBALPARAM: {"task", "round"},
            Kind.LOCALPARAM: {"task", "round", "chunk"},
        }[self.kind]
        optional = {"client"} if self.kind is Kind.LOCALPARAM else set()
        for name in ("task", "round", "chunk", "client", "part"):
            there = getattr(self, name) is not None
            if there and name not in needed | optional:
                raise ValueError(f"a {self.kind} has no {name}")
            if not there and name in needed:
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

    def place(self, sender: str) -> PurePosixPath:
        """Where the file lies, relative to the spool; its metadata lies beside it with `.json` instead of `.npy`."""
        match self.kind:
            case Kind.HELLO:
                return PurePosixPath("hello", f"{sender}.json")
            case Kind.INITPARAM:
                return PurePosixPath("initparam", f"{self.task}.json")
            case Kind.STOP:
                return PurePosixPath("stop", f"{self.task}.json")
            case Kind.TESTSET:
                return PurePosixPath("testset", str(self.task), f"{sender}.test{self.part}.npy")
            case Kind.GLOBALPARAM:
                return PurePosixPath("globalparam", str(self.task), f"round-{self.round:06d}.npy")
            case Kind.LOCALPARAM:
                client = "" if self.client is None else f".client-{self.client:06d}"
                name = f"{sender}.chunk-{self.chunk:06d}{client}.npy"
                return PurePosixPath("localparam", str(self.task), f"round-{self.round:06d}", name)


class FileHeader(BaseModel):
    """What a sender offers: the file's id, its exact size and blake3 digest, and small metadata for the daemon."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: FileId
    size: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    digest: Digest
    meta: dict[str, Any] = {}


def metadata_path(path: Path) -> Path:
    """Where the metadata of the `.npy` file at `path` lies."""
    return path.with_suffix(".json")
