"""The steps from each format of a state directory to the next, in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedsim.migrations import from_0_1
from fedsim.spool.format import FORMAT, read_format, refuse_newer, write_format

# Format -> what converts a directory of it to the next one and returns what it did. A step may be killed and run again.
STEPS: dict[int, Callable[[Path, bool], list[str]]] = {1: from_0_1.convert}


def needs_migration(folder: Path) -> bool:
    """Whether a state directory has an older format; raises `WrongFormat` for a newer one."""
    found = read_format(folder)
    if found is None:
        return False
    refuse_newer(folder, found)
    return found < FORMAT


def migrate_state(folder: Path, *, discard_tasks: bool = False) -> list[str]:
    """Migrate a state directory to this version's format; returns what was done, nothing for a current or unused one.

    The number is raised after each step, so that a run that was killed is continued by the next one.

    Args:
        folder: the state directory; its daemons must be stopped.
        discard_tasks: remove the files of unfinished tasks that the next format cannot continue.

    Raises:
        WrongFormat: it has a newer format.
        TasksInProgress: it holds files of unfinished tasks, and `discard_tasks` is false.
    """
    found = read_format(folder)
    if found is None:
        return []
    refuse_newer(folder, found)
    done = []
    for number in range(found, FORMAT):
        done += STEPS[number](folder, discard_tasks)
        write_format(folder, number + 1)
        done.append(f"{folder}: format {number} is now format {number + 1}")
    return done
