"""The owner's commands: `fedsim-client pending`, `approve` and `refuse`."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from fedsim.cli.output import NONE, Output, moment
from fedsim.client.owner_socket import DecisionRequest, PendingQuery, ask
from fedsim.command import State, exit_codes
from fedsim.config import ClientConfig, load_config
from fedsim.errors import EX_CONFIG, EX_DATA, EX_NOINPUT, EX_OK, EX_UNAVAILABLE, BadInput, NotThere
from fedsim.messages import Assignment
from fedsim.runtime.daemon import CONFIG_PATH
from fedsim.text import one_line

Command = TypeVar("Command", bound=Callable[..., Any])
EPILOG = exit_codes(EX_OK, EX_DATA, EX_NOINPUT, EX_UNAVAILABLE, EX_CONFIG)


def socket_option(command: Command) -> Command:
    """The option for the node's socket."""
    return click.option(
        "--socket",
        "socket_path",
        type=click.Path(path_type=Path),
        help="The node's `owner_socket`; without it the YAML file says where it is.",
    )(command)


def socket_of(context: click.Context, given: Path | None) -> Path:
    """The socket of the node that the command line names."""
    if given is not None:
        return given
    path = context.meta[CONFIG_PATH]
    found = load_config(path, ClientConfig).owner_socket
    if found is None:
        raise BadInput(f"{path} has no owner_socket: set it, and restart fedsim-client")
    return found


@click.command(epilog=EPILOG)
@socket_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def pending(context: click.Context, socket_path: Path | None, *, as_json: bool) -> int:
    """List the tasks that wait for this owner's approval, oldest first."""
    if isinstance(context.obj, State):
        context.obj.as_json = as_json
    output = Output(as_json=as_json)
    found = ask(socket_of(context, socket_path), PendingQuery())
    if as_json:
        output.document(found)
        return EX_OK
    if not found["pending"]:
        output.say("No task waits for approval.")
        return EX_OK
    rows = []
    for item in found["pending"]:
        task = Assignment.model_validate(item["assignment"])
        settings = task.settings
        rows.append(
            (
                task.number,
                one_line(task.user, 64),
                settings.dataset,
                settings.model if settings.trains else settings.kind,
                settings.num_rounds * settings.local_epochs if settings.trains else NONE,
                task.num_clients,
                moment(item["since"]),
                one_line(settings.purpose, 200),
            )
        )
    columns = ("task", "user", "data set", "model", "passes", "clients", "waits since", "purpose")
    output.table(columns, rows, numbers=("task", "passes", "clients"))
    output.say("Everything about them: --json, or the node's page. Then: fedsim-client approve N, or refuse N.")
    return EX_OK


@click.command(epilog=EPILOG)
@click.argument("task")
@socket_option
@click.pass_context
def approve(context: click.Context, task: str, socket_path: Path | None) -> int:
    """Approve a task, by its number or uid: exactly what the server asks for now."""
    return _decide(context, task, socket_path, approve=True)


@click.command(epilog=EPILOG)
@click.argument("task")
@click.option("--reason", default="", help="Why; the user who submitted the task reads it.")
@socket_option
@click.pass_context
def refuse(context: click.Context, task: str, reason: str, socket_path: Path | None) -> int:
    """Refuse a task, by its number or uid: this node takes no part in it."""
    return _decide(context, task, socket_path, approve=False, reason=reason)


def _decide(context: click.Context, task: str, socket_path: Path | None, *, approve: bool, reason: str = "") -> int:
    path = socket_of(context, socket_path)
    for item in ask(path, PendingQuery())["pending"]:
        found = Assignment.model_validate(item["assignment"])
        if task in {str(found.number), found.task}:
            request = DecisionRequest(uid=found.task, digest=item["digest"], approve=approve, reason=reason)
            ask(path, request)
            what = f"task {found.number} of {found.user} on {found.settings.dataset}"
            Output(as_json=False).say(f"{'Approved' if approve else 'Refused'}: {what}.")
            return EX_OK
    raise NotThere(f"no task {one_line(task, 64)} waits for approval here (see fedsim-client pending)")


@click.command(epilog=EPILOG)
@socket_option
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of this machine's loopback; 0: a free one.")
@click.option("--browser/--no-browser", default=True, help="Whether to open a browser, where there is one.")
@click.pass_context
def page(context: click.Context, socket_path: Path | None, port: int, *, browser: bool) -> int:
    """Show the node's page in a browser: the tasks that wait, with all settings, and the audit log.

    The address that is printed opens the page once, within ten minutes, until the command is interrupted (Ctrl-C). From
    another machine: ssh -L PORT:127.0.0.1:PORT, with the same --port.
    """
    from fedsim.owner.page import serve  # noqa: PLC0415 - the daemon needs none of it

    path = socket_of(context, socket_path)
    ask(path, PendingQuery())  # a problem is better shown here than in the browser

    def ready(address: str) -> None:
        click.echo(address)
        if browser and os.environ.get("DISPLAY", os.environ.get("WAYLAND_DISPLAY")):
            webbrowser.open(address)

    with suppress(KeyboardInterrupt):
        serve(path, port, ready)
    return EX_OK
