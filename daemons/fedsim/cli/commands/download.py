"""`fedsim download`: a checkpoint with its metadata. A file gets its name only after it has been verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from blake3 import blake3
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fedsim.cli.api import ApiClient, Json
from fedsim.cli.options import asks_web
from fedsim.cli.output import Output, moment, size
from fedsim.errors import BadInput, NotThere, Unavailable
from fedsim.spool.durable import replacing, write_all, write_bytes


@click.command()
@click.argument("task", metavar="NUMBER", type=click.IntRange(1))
@click.option("--round", "round_number", type=click.IntRange(0), help="The checkpoint of this round, not the last.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write, or a folder to put it in.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@asks_web
def download(
    api: ApiClient, out: Output, task: int, round_number: int | None, output: Path | None, force: bool
) -> None:
    """Download the last checkpoint of task NUMBER (safetensors) with its metadata (.json)."""
    checkpoint = _choose(api.checkpoints(task), task, round_number)
    path = _target(output, f"task-{task}-round-{checkpoint['round']:04d}.safetensors")
    description = path.with_suffix(".json")
    taken = [str(file) for file in (path, description) if file.exists()]
    if taken and not force:
        raise BadInput(f"{' and '.join(taken)} already exists: use another file with -o, or overwrite with --force")
    fetch(api, out, task, checkpoint, path)
    write_bytes(description, api.checkpoint_description(task, checkpoint["round"]))
    if out.as_json:
        out.document({"checkpoint": checkpoint, "path": str(path), "description": str(description)})
    else:
        out.say(f"{path} ({size(checkpoint['size'])}, blake3 {checkpoint['digest']})")


def _choose(checkpoints: list[Json], task: int, wanted: int | None) -> Json:
    """The checkpoint of round `wanted`, or the last one."""
    if not checkpoints:
        raise NotThere(f"Task {task} has no checkpoint yet: see its state with: fedsim show {task}")
    last = max(checkpoints, key=lambda checkpoint: int(checkpoint["round"]))
    chosen = last if wanted is None else next((c for c in checkpoints if c["round"] == wanted), None)
    kept = ", ".join(str(c["round"]) for c in checkpoints if not c["removed_at"]) or "none"
    if chosen is None:
        raise NotThere(f"Task {task} has no checkpoint of round {wanted} (available rounds: {kept})")
    if chosen["removed_at"]:
        raise NotThere(
            f"The checkpoint of round {chosen['round']} was removed on {moment(chosen['removed_at'])} "
            f"({chosen['removed_why']}); available rounds: {kept}"
        )
    return chosen


def _target(output: Path | None, name: str) -> Path:
    if output is None:
        return Path(name)
    return output / name if output.is_dir() else output


def fetch(api: ApiClient, out: Output, task: int, checkpoint: Json, path: Path) -> None:
    """Stream a checkpoint to a temporary file, verify size and digest, and then rename it.

    Raises:
        Unavailable: the content differs from what the server saved.
        BadInput: the file cannot be written.
    """
    digest, received, expected = blake3(), 0, int(checkpoint["size"])
    try:
        with replacing(path) as file, api.checkpoint(task, checkpoint["round"]) as pieces:
            for piece in _shown(pieces, out, path.name, expected):
                received += len(piece)
                if received > expected:
                    break
                digest.update(piece)
                write_all(file, piece)
            if received != expected or digest.hexdigest() != checkpoint["digest"]:
                raise Unavailable(
                    f"{path.name} arrived damaged ({received} of {expected} bytes, blake3 "
                    f"{digest.hexdigest()}, not {checkpoint['digest']}): nothing was stored, download it again"
                )
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}") from error


def _shown(pieces: Iterator[bytes], out: Output, name: str, expected: int) -> Iterator[bytes]:
    """Yield the pieces, with a progress bar on a terminal."""
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out.err, transient=True, disable=not out.err.is_terminal) as progress:
        row = progress.add_task("", total=expected)
        for piece in pieces:
            progress.advance(row, len(piece))
            yield piece
