"""The command `fedsim-migrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from fedsim import __version__
from fedsim.command import run_command
from fedsim.errors import Unavailable
from fedsim.migrations.steps import migrate_state, needs_migration


@click.command(name="fedsim-migrate")
@click.argument("folders", metavar="DIRECTORY…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--discard-tasks", is_flag=True, help="Remove files of unfinished tasks that cannot be continued.")
@click.option("--check", is_flag=True, help="Only print the directories that need it; exit with 78 if one is newer.")
@click.version_option(__version__)
def migrate(folders: tuple[Path, ...], *, discard_tasks: bool, check: bool) -> None:
    """Migrate state directories of an older fedsim (/var/lib/fedsim/server, …/client) to the format of this version.

    Stop the daemons that use a directory first, and run this as their user. It prints what it changed, nothing for a
    directory that is current or not used yet. It can be interrupted and run again.
    """
    for folder in folders:
        try:
            lines = (
                [str(folder)] * needs_migration(folder) if check else migrate_state(folder, discard_tasks=discard_tasks)
            )
            for line in lines:
                click.echo(line)
        except OSError as error:
            if error.filename is None:  # of the output
                raise
            raise Unavailable(f"{folder} cannot be migrated: {error.strerror} ({error.filename})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(migrate, "fedsim-migrate", arguments)
