"""The command `fedsim`: its parts."""

from __future__ import annotations

from collections.abc import Sequence

import click

from fedsim import __version__
from fedsim.cli.commands.accounts import login, logout
from fedsim.cli.commands.admin import admin
from fedsim.cli.commands.demo import demo
from fedsim.cli.commands.download import download
from fedsim.cli.commands.listings import nodes, options, rounds
from fedsim.cli.commands.partition import partition
from fedsim.cli.commands.predict import predict
from fedsim.cli.commands.tasks import continue_task, delete, rerun, resume, show, stop, submit, tasks
from fedsim.cli.commands.watch import watch
from fedsim.command import EPILOG, run_command


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Federated learning on the lab's machines.

    Log in once with `fedsim login`; then submit tasks, watch them, and download what they made. `fedsim predict`,
    `fedsim admin`, and `fedsim partition` with data need no web.
    """


for _command in (
    demo,
    login,
    logout,
    submit,
    tasks,
    show,
    watch,
    stop,
    resume,
    continue_task,
    delete,
    rerun,
    download,
    rounds,
    nodes,
    options,
    partition,
    predict,
    admin,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (None: this process's own); returns the exit code."""
    return run_command(cli, "fedsim", arguments)
