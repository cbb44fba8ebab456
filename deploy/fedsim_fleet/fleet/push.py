"""A data set brought to nodes: only what is not there yet, verified by digest, in place as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedsim.errors import BadInput, NotThere, Unavailable
from fedsim_fleet.fleet.inventory import Host
from fedsim_fleet.fleet.report import data_paths, script
from fedsim_fleet.fleet.ssh import Connection

_PIECE = 1 << 18
_MISSING = TypeAdapter(list[int] | None)


@dataclass(frozen=True)
class File:
    """A file of a data set: its name in there (empty: it is the data set), bytes and SHA-256."""

    path: Path
    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Sent:
    """What was done for a host."""

    files: int
    bytes: int


def files_of(path: Path) -> list[File]:
    """A file, or all files of a folder.

    Raises:
        NotThere: there is nothing.
        BadInput: the folder holds something that is no file, or nothing.
    """
    if path.is_file():
        return [_file(path, "")]
    if not path.is_dir():
        raise NotThere(f"there is no file or folder {path}")
    inside = sorted(one for one in path.rglob("*") if not one.is_dir())
    if strange := [one for one in inside if not one.is_file() or one.is_symlink()]:
        raise BadInput(f"{strange[0]} is no plain file: a data set consists of files and folders")
    if not inside:
        raise BadInput(f"the folder {path} is empty")
    return [_file(one, one.relative_to(path).as_posix()) for one in inside]


def _file(path: Path, name: str) -> File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(path, name, path.stat().st_size, digest)


def sources(hosts: list[Host], name: str, path: Path) -> dict[str, Path]:
    """What each host gets: where `path` is a folder with an entry for every host's name, its own; else all the same.

    Raises:
        BadInput: a host has no such data set, or only some have an entry.
    """
    for host in hosts:
        if name not in data_paths(host):
            raise BadInput(
                f"{host.name} has no data set {name} in the inventory that lies in files: "
                "add it to fedsim_datasets there, then run site.yml"
            )
    own = {host.name: found[0] for host in hosts if (found := _entries(path, host.name))}
    if not own:
        return {host.name: path for host in hosts}
    if without := [host.name for host in hosts if host.name not in own]:
        raise BadInput(f"{path} has files of its own for {', '.join(own)}, but none for {', '.join(without)}")
    return own


def _entries(path: Path, host: str) -> list[Path]:
    """The host's folder or file, with any ending."""
    if not path.is_dir():
        return []
    return sorted(one for one in path.iterdir() if one.name == host or (one.is_file() and one.stem == host))


def push(connection: Connection, name: str, files: list[File], progress: Callable[[int, int], None]) -> Sent | None:
    """Make a host's data set these files and no others; what is there with the same digest is not sent.

    Args:
        connection: to the host.
        name: of the data set.
        files: of it.
        progress: called with the bytes that went, and that go in all.

    Returns:
        What went; None if the data set was there just like this.

    Raises:
        Unavailable: the host has no room, or what came there is not what went.
    """
    target = data_paths(connection.host)[name]
    with connection.talk(["python3", "-c", script("receive.py"), target]) as talk:
        listed = [[file.name, file.size, file.digest] for file in files]
        talk.say(json.dumps(listed).encode() + b"\n")
        try:
            numbers = _MISSING.validate_json(talk.hear())
            if numbers is None:
                progress(0, 0)
                return None
            missing = [files[number] for number in numbers]
        except (ValidationError, IndexError) as error:
            raise Unavailable("the host answers something else than what it lacks") from error
        total, went = sum(file.size for file in missing), 0
        progress(went, total)
        for file in missing:
            with file.path.open("rb") as source:
                while piece := source.read(_PIECE):
                    talk.say(piece)
                    went += len(piece)
                    progress(went, total)
        talk.hear()
    return Sent(len(missing), total)
