"""Copies a data set to nodes: only missing files, verified by digest, replaced in one step."""

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
from fedsim_fleet.fleet.ssh import Connection, InteractiveCommand

_PIECE = 1 << 18
_MARK = "fedsim: "
_MISSING = TypeAdapter(list[int] | None)


@dataclass(frozen=True)
class File:
    """A file of a data set: its name in the data set (empty if the file is the data set), size in bytes and SHA-256."""

    path: Path
    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class PushResult:
    """The number of files and bytes that were sent to a host."""

    files: int
    bytes: int


def files_of(path: Path) -> list[File]:
    """A file, or all files of a folder.

    Raises:
        NotThere: the path does not exist.
        BadInput: the folder is empty, or contains something other than files and folders.
    """
    if path.is_file():
        return [_file(path, "")]
    if not path.is_dir():
        raise NotThere(f"{path} does not exist")
    inside = sorted(one for one in path.rglob("*") if not one.is_dir())
    if invalid := [one for one in inside if not one.is_file() or one.is_symlink()]:
        raise BadInput(f"{invalid[0]} is not a regular file: a data set consists of files and folders")
    if not inside:
        raise BadInput(f"the folder {path} is empty")
    return [_file(one, one.relative_to(path).as_posix()) for one in inside]


def _file(path: Path, name: str) -> File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(path, name, path.stat().st_size, digest)


def sources(hosts: list[Host], name: str, path: Path) -> dict[str, Path]:
    """The source for each host: its own entry if `path` is a folder with an entry for every host, otherwise `path`.

    Raises:
        BadInput: a host has no such data set, or only some have an entry.
    """
    for host in hosts:
        if name not in data_paths(host):
            raise BadInput(
                f"{host.name} has no data set {name} with files in the inventory: "
                "add it to fedsim_datasets there, then run site.yml"
            )
    own = {host.name: found[0] for host in hosts if (found := _entries(path, host.name))}
    if not own:
        return {host.name: path for host in hosts}
    if without := [host.name for host in hosts if host.name not in own]:
        raise BadInput(f"{path} has files of its own for {', '.join(own)}, but none for {', '.join(without)}")
    return own


def _entries(path: Path, host: str) -> list[Path]:
    """The host's folder or file, with any extension."""
    if not path.is_dir():
        return []
    return sorted(one for one in path.iterdir() if one.name == host or (one.is_file() and one.stem == host))


def push(
    connection: Connection, name: str, files: list[File], progress: Callable[[int, int], None]
) -> PushResult | None:
    """Replace a host's data set by these files; files that it already has are not sent.

    Args:
        connection: a connection to the host.
        name: the name of the data set.
        files: the files of the data set.
        progress: called with the number of bytes sent, and the total.

    Returns:
        What was sent; None if the data set was up to date.

    Raises:
        Unavailable: the host has not enough disk space, or a file arrived damaged.
    """
    target = data_paths(connection.host)[name]
    with connection.start(["python3", "-c", script("receive.py"), target]) as command:
        listed = [[file.name, file.size, file.digest] for file in files]
        command.send(json.dumps(listed).encode() + b"\n")
        try:
            numbers = _MISSING.validate_json(_answer(command))
            if numbers is None:
                progress(0, 0)
                return None
            missing = [files[number] for number in numbers]
        except (ValidationError, IndexError) as error:
            raise Unavailable("the host sent an invalid list of missing files") from error
        total, sent = sum(file.size for file in missing), 0
        progress(sent, total)
        for file in missing:
            with file.path.open("rb") as source:
                while piece := source.read(_PIECE):
                    command.send(piece)
                    sent += len(piece)
                    progress(sent, total)
        _answer(command)
    return PushResult(len(missing), total)


def _answer(command: InteractiveCommand) -> str:
    """The next answer of receive.py; what a shell's profile or sudo prints is skipped."""
    while not (line := command.receive_line()).startswith(_MARK):
        pass
    return line.removeprefix(_MARK)
