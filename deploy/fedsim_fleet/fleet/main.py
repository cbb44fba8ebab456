"""The command `fedsim-fleet`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn
from rich.text import Text

from fedsim import __version__
from fedsim.cli.options import json_option
from fedsim.cli.output import Output, plain, size
from fedsim.command import run_command
from fedsim.errors import EX_FAILED, EX_INTERRUPTED, EX_OK, EX_UNAVAILABLE, FedsimError
from fedsim_fleet.fleet import doctor as diagnosis
from fedsim_fleet.fleet import journals, push, report, status
from fedsim_fleet.fleet import renew as renewal
from fedsim_fleet.fleet.inventory import Host, read_inventory, secrets_of, select_hosts
from fedsim_fleet.fleet.parallel import ask_all
from fedsim_fleet.fleet.ssh import CommandResult, Connection

P = ParamSpec("P")
RESTART_SECONDS = 180.0
INVENTORY = Path("ansible/inventory/lab.yml")


@dataclass(frozen=True)
class Fleet:
    """The hosts of a command and the timeout of their connections."""

    hosts: list[Host]
    all_hosts: list[Host]
    inventory: Path
    timeout: float


def on_fleet(function: Callable[Concatenate[Fleet, Output, P], int]) -> Callable[..., int]:
    """Decorate a command on hosts of the inventory: a `Fleet` and an `Output` are passed before its own parameters."""

    @click.option("--host", "names", multiple=True, help="Only this host (can be given more than once).")
    @json_option
    @wraps(function)
    def command(names: tuple[str, ...], as_json: bool, *args: P.args, **more: P.kwargs) -> int:
        options = click.get_current_context().find_root().params
        hosts = read_inventory(options["inventory"])
        fleet = Fleet(select_hosts(hosts, names), hosts, options["inventory"], options["timeout"])
        return function(fleet, Output(as_json=as_json), *args, **more)

    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-i",
    "--inventory",
    type=click.Path(path_type=Path),
    envvar=["FEDSIM_INVENTORY", "ANSIBLE_INVENTORY"],
    default=INVENTORY,
    show_default=True,
    help="The lab's Ansible inventory [env: FEDSIM_INVENTORY, ANSIBLE_INVENTORY].",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="Seconds without a response after which a host is considered unreachable.",
)
@click.version_option(__version__)
def fleet(inventory: Path, timeout: float) -> None:
    """Manage all hosts of a lab over SSH. Hosts come from the Ansible inventory; their keys must be known."""


@fleet.command("status")
@on_fleet
def show_status(fleet: Fleet, output: Output) -> int:
    """Show the state of every host: units, version, task and round, free space, clock, certificate.

    The exit code is 0 if every host answers and all its units are active, otherwise 1.
    """
    answers = ask_all(fleet.hosts, fleet.timeout, report.ask)
    now = time.time()
    if output.as_json:
        output.document(status.document(answers, now))
    else:
        output.table(
            status.COLUMNS, (status.row(name, answer, now) for name, answer in answers.items()), numbers=status.NUMBERS
        )
    return EX_OK if all(map(status.is_healthy, answers.values())) else EX_FAILED


@fleet.command("doctor")
@on_fleet
def run_doctor(fleet: Fleet, output: Output) -> int:
    """Find the problems of a lab, and show what to do about each.

    The exit code is 0 if no problem was found, otherwise 1.
    """

    def request(connection: Connection) -> report.HostReport:
        return report.ask(connection, diagnosis.required_peers(connection.host, fleet.all_hosts))

    answers = ask_all(fleet.hosts, fleet.timeout, request)
    secrets = secrets_of(fleet.inventory, fleet.all_hosts)
    authority, web = (diagnosis.read_authority(secrets / folder) for folder in ("ca", "web-ca"))
    findings = diagnosis.diagnose(answers, diagnosis.Lab(fleet.all_hosts, authority, time.time(), web))
    if output.as_json:
        output.document({"findings": [vars(finding) for finding in findings]})
    else:
        for finding in findings:
            output.say(f"{finding.host}: {finding.problem}")
            output.say(f"    → {finding.remedy}")
        checked = f"{len(fleet.hosts)} hosts, {len(diagnosis.CHECKS)} checks each: "
        output.say(checked + (f"{len(findings)} problems." if findings else "no problems."))
    return EX_FAILED if findings else EX_OK


@fleet.command("renew")
@on_fleet
def renew_certificates(fleet: Fleet, output: Output) -> int:
    """Renew the certificates that expire within 90 days: new keys on the hosts, daemons reloaded. Run it weekly.

    The authority and its passphrase are those in the folder secrets next to the inventory. If the passphrase is
    neither there nor in FEDSIM_CA_PASSPHRASE, the command only warns. The exit code is 0 if nothing remains to be
    renewed, otherwise 1.
    """
    now = datetime.now(UTC)
    secrets = secrets_of(fleet.inventory, fleet.all_hosts)
    authorities = renewal.Authorities.of(secrets)

    def request(connection: Connection) -> renewal.Renewal:
        return renewal.renew(connection, report.ask(connection), authorities, now)

    answers = ask_all(fleet.hosts, fleet.timeout, request)
    results = [renewal.result(host, answers[host.name], authorities, now) for host in fleet.hosts]
    results += renewal.others(authorities, fleet.all_hosts, now)
    if output.as_json:
        output.document({"certificates": [vars(one) for one in results]})
    for one in results:
        output.say(f"{one.name}: {one.text}")
    return EX_OK if all(one.good for one in results) else EX_FAILED


@fleet.command("logs")
@click.option("--task", type=click.IntRange(min=1), help="Only entries of this task.")
@click.option("--since", help="In the syntax of journalctl: '1 hour ago', 'today', '2026-11-25 08:00'.")
@click.option("--follow", is_flag=True, help="Show new entries as they arrive, until Ctrl-C.")
@on_fleet
def show_logs(fleet: Fleet, output: Output, task: int | None, since: str | None, *, follow: bool) -> int:
    """Show the journals of all hosts, merged in chronological order."""
    colours = journals.colours_of(fleet.hosts)
    width = max(len(host.name) for host in fleet.hosts)
    unreadable: list[journals.UnreadableJournal] = []

    def on_unreadable(one: journals.UnreadableJournal) -> None:
        unreadable.append(one)
        output.note(f"{one.host} {'cannot be read, retrying' if follow else 'is skipped'}: {one.why}")

    read = journals.follow_all if follow else journals.read_all
    try:
        for entry in read(fleet.hosts, journals.JournalQuery(task, since), fleet.timeout, on_unreadable):
            if output.as_json:
                click.echo(json.dumps(vars(entry), ensure_ascii=False))
            else:
                output.out.print(journals.render(entry, colours, width), soft_wrap=True)
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    return EX_UNAVAILABLE if unreadable else EX_OK


@fleet.command("push-data")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@on_fleet
def push_data(fleet: Fleet, output: Output, name: str, path: Path) -> int:
    """Copy the data set NAME to the nodes.

    PATH is a file or folder for all nodes, or a folder with an entry for each node (node-a.csv, node-b/). Files that a
    node already has are not sent again; files that are not in PATH are removed. A node's data set is replaced in one
    step, when all files have arrived.
    """
    nodes = [host for host in fleet.hosts if not host.is_server]
    each = {host: push.files_of(source) for host, source in push.sources(nodes, name, path).items()}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=output.err) as bars:
        progress_bars: dict[str, TaskID] = {host.name: bars.add_task(host.name, total=None) for host in nodes}

        def request(connection: Connection) -> push.PushResult | None:
            host = connection.host.name

            def progress(sent_bytes: int, total: int) -> None:
                bars.update(progress_bars[host], completed=sent_bytes, total=total)

            return push.push(connection, name, each[host], progress)

        answers = ask_all(nodes, fleet.timeout, request)
    for host, sent in answers.items():
        output.say(f"{host}: {_pushed(sent)}")
    if output.as_json:
        output.document({host: {"problem": _why(sent)} for host, sent in answers.items()})
    return EX_UNAVAILABLE if any(map(_why, answers.values())) else EX_OK


def _why(answer: object) -> str | None:
    return str(answer) if isinstance(answer, FedsimError) else None


def _pushed(sent: push.PushResult | FedsimError | None) -> str:
    if isinstance(sent, FedsimError):
        return f"failed: {sent}"
    if sent is None:
        return "is up to date"
    return f"{sent.files} file{'' if sent.files == 1 else 's'}, {size(sent.bytes)}, verified"


@fleet.command("restart")
@click.argument("units", nargs=-1)
@on_fleet
def restart(fleet: Fleet, output: Output, units: tuple[str, ...]) -> int:
    """Restart UNITS (default: all of fedsim) host by host; the next host follows when the previous one is ready.

    Running tasks continue from their state on disk.
    """
    done: list[str] = []
    for host in fleet.hosts:
        selected = [unit for unit in units if unit in host.units] if units else list(host.units)
        if not selected:
            continue
        output.note(f"{host.name}: restarting {', '.join(selected)} …")
        # systemctl returns when the units have reported READY.
        with Connection(host, fleet.timeout) as connection:
            answer = connection.run(["systemctl", "restart", *selected], within=RESTART_SECONDS)
        if answer.code:
            left = len(fleet.hosts) - len(done) - 1
            output.note(f"{host.name}: {(answer.err or answer.out).strip()}")
            output.note(f"{left} hosts were not restarted. See: fedsim-fleet doctor --host {host.name}")
            return EX_UNAVAILABLE
        done.append(host.name)
        output.say(f"{host.name}: ready")
    if output.as_json:
        output.document({"restarted": done})
    return EX_OK


@fleet.command("run")
@click.argument("command", nargs=-1, required=True)
@click.option("--within", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Time limit in seconds.")
@on_fleet
def run(fleet: Fleet, output: Output, command: tuple[str, ...], within: float) -> int:
    """Run COMMAND as root on all hosts in parallel, and print its output, each line with its host.

    A single word is run by a shell: fedsim-fleet run 'df -h / | tail -1'. Several words are run without a shell; put --
    before them if they contain options: fedsim-fleet run -- df -h /. The exit code is the highest of all hosts.
    """
    colours = journals.colours_of(fleet.hosts)
    width = max(len(host.name) for host in fleet.hosts)
    arguments_ = ["sh", "-c", command[0]] if len(command) == 1 else list(command)

    def on_answer(host: Host, answer: CommandResult | FedsimError) -> None:
        if output.as_json:
            return
        if isinstance(answer, FedsimError):
            output.note(f"{host.name:<{width}} {answer}")
            return
        for line in [*answer.out.splitlines(), *answer.err.splitlines()]:
            head = Text(f"{host.name:<{width}} ", style=colours[host.name])
            output.out.print(head.append(plain(line), style="default"), soft_wrap=True)

    answers = ask_all(fleet.hosts, fleet.timeout, lambda one: one.run(arguments_, within=within), on_answer)
    if output.as_json:
        output.document(
            {
                name: {"problem": str(answer)} if isinstance(answer, FedsimError) else vars(answer)
                for name, answer in answers.items()
            }
        )
    return max(EX_UNAVAILABLE if isinstance(answer, FedsimError) else answer.code for answer in answers.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(fleet, "fedsim-fleet", arguments)
