"""Clearing what is used up. Everything here may be done again: what is already gone is no error."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from fedsim.spool.durable import TEMPORARY_SUFFIX, remove_file, remove_tree
from fedsim.spool.files import JSON_KINDS, Kind, metadata_path
from fedsim.spool.layout import Spool


def clear_file(path: Path) -> None:
    """Remove a file that was used and its metadata; the file first, because it is what says that something is here."""
    remove_file(path)
    if path.suffix == ".npy":
        remove_file(metadata_path(path))


def clear_round(spool: Spool, kind: Kind, task: str, round_number: int) -> None:
    """Remove the `globalparam` or the `localparam` files of one round of a task."""
    for item in spool.arrived(kind, task, round_number):
        clear_file(item.path)
    if kind is Kind.LOCALPARAM:
        remove_tree(spool.folder(kind) / task / f"round-{round_number:06d}")


def clear_task(spool: Spool, task: str, kinds: Iterable[Kind] = tuple(Kind)) -> None:
    """Remove everything of a task, or its files of some kinds only; from here on nothing more of it is waited for."""
    remove_file(spool.wanted(task))
    for kind in kinds:
        if kind is Kind.HELLO:
            continue
        if kind in JSON_KINDS:
            remove_file(spool.folder(kind) / f"{task}.json")
        else:
            remove_tree(spool.folder(kind) / task)


def clear_other_tasks(spool: Spool, keep: Collection[str], kinds: Iterable[Kind] = tuple(Kind)) -> set[str]:
    """The start-up sweep of a daemon: remove every task's files but those of `keep`; returns the tasks that went."""
    chosen = tuple(kinds)
    found: set[str] = set()
    for kind in chosen:
        if kind is not Kind.HELLO:
            found |= {path.name.removesuffix(".json") for path in spool.folder(kind).iterdir() if path.name[0] != "."}
    found |= {path.stem for path in spool.wanting.glob("*.json")}
    gone = found - set(keep)
    for task in gone:
        clear_task(spool, task, chosen)
    return gone


def clear_leftovers(spool: Spool, older_than_seconds: float, in_use: Collection[Path] = ()) -> int:
    """The receiver's sweep: half-received and half-written files that nobody resumed; returns how many.

    Those `in_use` stay, however long nothing has come of them.
    """
    before = time.time() - older_than_seconds
    count = 0
    for path in {*spool.incoming.iterdir(), *_temporary(spool.root)} - set(in_use):
        try:
            old = path.lstat().st_mtime < before
            if old and path.is_dir():
                shutil.rmtree(path)
            elif old:
                path.unlink()
            count += old
        except FileNotFoundError:
            continue
    return count


def _temporary(root: Path) -> list[Path]:
    """What lies under temporary names. `os.walk` passes over folders that vanish while it walks."""
    return [
        Path(folder, name)
        for folder, folders, files in os.walk(root)
        for name in (*folders, *files)
        if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)
    ]
