"""Removes files that were used. Every function can be repeated: a missing file is not an error."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from fedsim.spool.durable import TEMPORARY_SUFFIX, remove_file, remove_tree
from fedsim.spool.files import Kind, metadata_path
from fedsim.spool.kinds import KINDS
from fedsim.spool.layout import Spool


def clear_file(path: Path) -> None:
    """Remove a file and its metadata; the file first, because its name is what marks it as arrived."""
    remove_file(path)
    if path.suffix == ".npy":
        remove_file(metadata_path(path))


def clear_round(spool: Spool, kind: Kind, task: str, round_number: int) -> None:
    """Remove the `globalparam` or the `localparam` files of one round of a task."""
    for item in spool.arrived(kind, task, round_number):
        clear_file(item.path)
    template = KINDS[kind].path
    folder = template.folder({"task": task, "round": round_number})
    if folder != template.folder({"task": task}):
        remove_tree(spool.root / folder)


def clear_rounds(spool: Spool, kind: Kind, task: str, through: int) -> None:
    """Remove the files of a task's rounds up to this one."""
    for number in {item.id.round or 0 for item in spool.arrived(kind, task)} & set(range(through + 1)):
        clear_round(spool, kind, task, number)


def clear_task(spool: Spool, task: str, kinds: Iterable[Kind] = tuple(Kind)) -> None:
    """Remove everything of a task, or its files of some kinds only; nothing more of it is expected from then on."""
    remove_file(spool.wanted(task))
    for kind in kinds:
        spec = KINDS[kind]
        folder = spec.path.folder({"task": task})
        if spec.of_task and folder != spec.path.folder({}):
            remove_tree(spool.root / folder)
        elif spec.of_task:
            for item in spool.arrived(kind, task):
                clear_file(item.path)


def clear_other_tasks(spool: Spool, keep: Collection[str], kinds: Iterable[Kind] = tuple(Kind)) -> set[str]:
    """The start-up sweep of a daemon: remove the files of all tasks except `keep`; returns the removed tasks."""
    chosen = tuple(kinds)
    found: set[str] = set()
    for kind in chosen:
        if KINDS[kind].of_task:
            found |= {path.name.removesuffix(".json") for path in spool.folder(kind).iterdir() if path.name[0] != "."}
    found |= {path.stem for path in spool.wanting.glob("*.json")}
    removed = found - set(keep)
    for task in removed:
        clear_task(spool, task, chosen)
    return removed


def clear_leftovers(spool: Spool, older_than_seconds: float, in_use: Collection[Path] = ()) -> int:
    """The receiver's sweep: partly received and partly written files that were not resumed; returns how many.

    Those `in_use` stay, however old they are.
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
    """Files and folders with temporary names. `os.walk` skips folders that vanish while it walks."""
    return [
        Path(folder, name)
        for folder, folders, files in os.walk(root)
        for name in (*folders, *files)
        if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)
    ]
