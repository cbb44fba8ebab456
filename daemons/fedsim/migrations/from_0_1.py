"""From format 1, which fedsim 0.1 wrote without a number, to format 2 of fedsim 0.2.

Tasks cannot continue after this step, because plans, assignments and updates have another form. Checkpoints, final
models and the audit log are kept.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path

from fedsim.errors import EX_TRY_AGAIN, FedsimError
from fedsim.legacy_settings import settings_from_0_1
from fedsim.spool.durable import remove_file, remove_tree, sync_folder, write_json
from fedsim.spool.layout import CHECKPOINTS

# Folders whose content is sent again, or belongs to unfinished tasks.
_TRANSIENT = ("hello", "initparam", "testset", "globalparam", "localparam", "stop", "wanted", ".incoming")
# 0.1 -> 0.2; on a node.
_AUDIT_LOG = ("left.jsonl", "audit.jsonl")
# The server's list of nodes, which nodes do not have.
_SERVER_FILE = "nodes.json"
_HIDDEN = "."


class TasksInProgress(FedsimError):  # noqa: N818
    """A directory contains files of unfinished tasks."""

    exit_code = EX_TRY_AGAIN


def convert(folder: Path, discard_tasks: bool) -> list[str]:
    """Convert a state directory of 0.1, of a server or a node; returns what was done.

    Raises:
        TasksInProgress: it holds files of unfinished tasks, and `discard_tasks` is false.
    """
    tasks = unfinished_tasks(folder)
    if tasks and not discard_tasks:
        raise TasksInProgress(
            f"{folder} holds files of unfinished tasks ({', '.join(tasks)}), which this version cannot continue: let "
            "them finish or stop them under fedsim 0.1, or discard their files with --discard-tasks"
        )
    done = [f"{folder}: discarded the files of task {uid}" for uid in tasks]
    for name in _TRANSIENT:
        _empty(folder / name)
    done += _rename_audit_log(folder)
    done += [f"{path}: settings converted" for path in _convert_checkpoints(folder / CHECKPOINTS)]
    return done


def unfinished_tasks(folder: Path) -> list[str]:
    """The uids of tasks whose files are in the directory.

    The web's `initparam` on a server is only a notification of a task; its row is authoritative.
    """
    kinds = ["testset", "globalparam", "localparam"]
    if not (folder / _SERVER_FILE).exists():
        kinds.append("initparam")
    return sorted({entry.name.removesuffix(".json") for kind in kinds for entry in _entries(folder / kind)})


def _entries(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith(_HIDDEN))


def _empty(folder: Path) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            remove_tree(path)
        else:
            remove_file(path)


def _rename_audit_log(folder: Path) -> list[str]:
    old, new = (folder / name for name in _AUDIT_LOG)
    if not old.exists() or new.exists():
        return []
    old.rename(new)
    sync_folder(folder)
    return [f"{old}: renamed to {new.name}"]


def _convert_checkpoints(folder: Path) -> list[Path]:
    """Rewrite the JSON of each checkpoint whose settings have the form of 0.1."""
    converted = []
    for path in sorted(folder.rglob("*.json")):
        about = json.loads(path.read_bytes())
        settings = settings_from_0_1(about.get("settings", {}))
        if settings != about.get("settings", {}):
            write_json(path, {**about, "settings": settings}, stat.S_IMODE(path.stat().st_mode))
            converted.append(path)
    return converted
