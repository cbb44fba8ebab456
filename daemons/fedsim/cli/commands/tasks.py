"""Commands about tasks: submit, list, show, stop, resume, delete, run again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from fedsim.cli.api import ApiClient, Json, Rejected
from fedsim.cli.commands.listings import contributions_table, node_tests_table, rounds_table
from fedsim.cli.commands.statistics import statistics_tables
from fedsim.cli.commands.watch import hint_at_download, outcome_code, watch_task
from fedsim.cli.follow import Snapshot, metric_name, metric_text
from fedsim.cli.options import asks_web
from fedsim.cli.output import NONE, Output, moment, size
from fedsim.cli.settings_file import STDIN, override, read_settings, set_option
from fedsim.contribution_table import contributions_of
from fedsim.errors import EX_OK
from fedsim.task_kinds import STATISTICS_SETTINGS

SHOWN_ROUNDS = 20
SHOWN_CLIENTS = 20
number_argument = click.argument("task", metavar="NUMBER", type=click.IntRange(1))
watch_option = click.option("--watch", "then_watch", is_flag=True, help="Then watch the task, like `fedsim watch`.")


@click.command()
@click.argument("file")
@set_option
@watch_option
@asks_web
def submit(api: ApiClient, out: Output, file: str, overrides: tuple[tuple[str, str], ...], then_watch: bool) -> int:
    """Submit a task with the settings in FILE.

    FILE is YAML or JSON, with fedsim's names or those of the original platform (num_comm, cfraction …); - is standard
    input. Missing settings have their defaults, see `fedsim options`.
    """
    return _submit(api, out, override(read_settings(file), overrides), file, then_watch=then_watch)


@click.command()
@number_argument
@set_option
@watch_option
@asks_web
def rerun(api: ApiClient, out: Output, task: int, overrides: tuple[tuple[str, str], ...], then_watch: bool) -> int:
    """Submit the settings of task NUMBER again, with the changes of --set, on its nodes and with its plan.

    Where that plan does not fit any more, the new task's notes say "not comparable", and why.
    """
    settings = override(api.task(task)["settings"], overrides)
    return _submit(api, out, settings, f"task {task} with these changes", then_watch=then_watch, repeats=task)


def _submit(
    api: ApiClient, out: Output, settings: Json, source: str, *, then_watch: bool, repeats: int | None = None
) -> int:
    try:
        task, notes = api.submit(settings, repeats)
    except Rejected as error:
        if not error.problems:
            raise
        shown = "standard input" if source == STDIN else source
        raise Rejected(f"{shown} cannot be submitted:", error.problems) from error
    for note in notes:
        out.note(f"Note: {note}")
    out.say(f"Task {task['number']} is submitted: {api.url}{task['url']}")
    code = EX_OK
    if then_watch:
        snapshot = watch_task(api, out, task["number"])
        hint_at_download(out, snapshot)
        task, code = snapshot.record, outcome_code(snapshot)
    if out.as_json:
        out.document({"task": task, "notes": notes})
    return code


@click.command()
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Maximum number of tasks, newest first."
)
@click.option("--all", "all_pages", is_flag=True, help="List all tasks, without a limit.")
@click.option("--everybody", is_flag=True, help="Tasks of all users (administrators only).")
@asks_web
def tasks(api: ApiClient, out: Output, limit: int, all_pages: bool, everybody: bool) -> None:
    """List tasks, newest first."""
    found = api.tasks(limit=None if all_pages else limit, everybody=everybody)
    if out.as_json:
        out.document({"tasks": found})
        return
    if not found:
        out.note("There are no tasks yet. Submit one with: fedsim submit FILE")
        return
    columns = [
        "task",
        *(["user"] if everybody else []),
        "title",
        "model",
        "data",
        "state",
        "rounds",
        "result",
        "left",
    ]
    out.table([*columns, "submitted"], [_row(Snapshot(record), everybody) for record in found], numbers=["task"])


def _row(task: Snapshot, everybody: bool) -> list[Any]:
    record = task.record
    settings = record["settings"]
    return [
        task.number,
        *([record["user_name"]] if everybody else []),
        settings["title"] or NONE,
        settings["model"] if task.trains else settings["kind"],
        settings["dataset"],
        f"{task.state}, WARNING" if record["warning"] else task.state,
        f"{task.rounds_done}/{task.num_rounds}" if task.trains else NONE,
        task.headline if record["metrics"] else NONE,
        task.time_left.removeprefix("about ").removesuffix(" left") or NONE,
        moment(record["created_at"]),
    ]


@click.command()
@number_argument
@asks_web
def show(api: ApiClient, out: Output, task: int) -> None:
    """Show task NUMBER: state and reason, nodes that take no part, settings, latest rounds, checkpoints."""
    record, checkpoints = api.task(task), api.checkpoints(task)
    if out.as_json:
        participation = api.participation(task)
        document = {
            "task": record,
            "statistics": api.statistics(task),
            "plan": api.plan(task),
            "rounds": api.rounds(task),
            "checkpoints": checkpoints,
        }
        out.document(document | {"participation": participation})
        return
    rounds, num_rounds = api.newest_rounds(task, SHOWN_ROUNDS)
    snapshot = Snapshot(record)
    title = f" – {record['settings']['title']}" if record["settings"]["title"] else ""
    out.say(f"Task {task}{title}, of {record['user_name']}: {api.url}{record['url']}")
    if snapshot.finished:
        out.say(snapshot.outcome)
    else:
        out.say(
            ", ".join(part for part in (snapshot.state, snapshot.course, snapshot.activity, snapshot.time_left) if part)
        )
    if record["warning"]:
        out.say(f"WARNING: {record['warning']}")
    if best := record["best"]:
        value = metric_text(best["metric"], best["value"], record)
        out.say(
            f"best round so far by {metric_name(best['metric'])}: {best['round']} ({value}); its checkpoint is kept"
        )
    times = {"submitted": "created_at", "started": "started_at", "finished": "finished_at"}
    out.say(", ".join(f"{name} {moment(record[field])}" for name, field in times.items() if record[field]))
    if record["nodes"]:
        out.say(f"nodes: {', '.join(record['nodes'])}")
    for line in _plan_lines(api.plan(task) if snapshot.trains else None):
        out.say(line)
    for node, why in record["left_out"].items():
        out.say(f"{node} takes no part: it {why}")
    for line in _participation_lines(api, record):
        out.say(line)
    for note in record["notes"]:
        out.say(f"note: {note}")
    if (initial := record["initial"]) is not None:
        named = f"the file {initial['file']}" if initial["source"] == "file" else _round_of(initial)
        out.say(f"starts from {named}, digest {initial['digest']}")
    if record["digest"]:
        out.say(f"digest: {record['digest']}")
    out.say("")
    out.table(["setting", "value"], list(_settings_rows(record["settings"])))
    if not snapshot.trains:
        statistics_tables(out, api.statistics(task))
    if rounds:
        out.say("")
        rounds_table(out, record, rounds)
        if num_rounds > len(rounds):
            out.note(f"The latest {len(rounds)} of {num_rounds} rounds. For all of them: fedsim rounds {task}")
    if (tested := next((one for one in reversed(rounds) if one["node_metrics"]), None)) is not None:
        out.say("")
        node_tests_table(out, record, tested)
    if (found := contributions_of((one["round"], one["contributions"]) for one in reversed(rounds))) is not None:
        out.say("")
        contributions_table(out, *found)
    if checkpoints:
        out.say("")
        out.table(["checkpoint of round", "size", "saved", "digest"], [_checkpoint_row(c) for c in checkpoints])


def _round_of(initial: Json) -> str:
    return f"round {initial['round']} of task {initial['task']}"


def _plan_lines(plan: Json | None) -> Iterator[str]:
    """How each node trains."""
    if plan is None:
        return
    for share in plan["shares"]:
        engine, chunk = share["engine"], share["chunk_clients"] or plan["chunk_clients"]
        workers = f"{share['workers']} workers, " if share["workers"] else ""
        how = f"{engine['name']} on {engine['device']}, {workers}{engine['threads']} threads each, chunks of {chunk}"
        yield f"{share['node']} trains {share['num_clients']} clients: {how}"


def _participation_lines(api: ApiClient, record: Json) -> Iterator[str]:
    """What there is to say about a task whose rounds went on without clients."""
    lossy = {node: counts for node, counts in record["participation"].items() if counts["missing"]}
    if not lossy:
        return
    yield "Rounds went on without clients: the result is comparable only with a run without the same ones."
    for node, counts in lossy.items():
        lacking = f"in {counts['rounds_missing']} of {counts['rounds']} rounds"
        yield f"{node}: {counts['missing']} of {counts['expected']} updates are missing, {lacking}"
    clients = api.participation(record["number"])["clients"]
    most = sorted(clients, key=lambda client: (-len(clients[client]), int(client)))[:SHOWN_CLIENTS]
    shown = ", ".join(f"{client} ({len(clients[client])})" for client in most)
    more = f" and {len(clients) - len(most)} more" if len(clients) > len(most) else ""
    yield f"missing clients, and in how many rounds: {shown}{more}"


def _settings_rows(settings: Json) -> Iterator[tuple[str, Any]]:
    """Names and values; options are named as for `--set`."""
    for name, value in settings.items():
        if settings.get("kind") == "statistics" and name not in STATISTICS_SETTINGS:
            continue
        if isinstance(value, dict):
            yield from ((f"{name}.{option}", chosen) for option, chosen in value.items())
        elif name != "title" and value not in ("", [], None):
            yield name, value


def _checkpoint_row(checkpoint: Json) -> list[Any]:
    gone = f"removed {moment(checkpoint['removed_at'])}: {checkpoint['removed_why']}"
    kept = checkpoint["digest"]
    cells = [checkpoint["round"], size(checkpoint["size"]), moment(checkpoint["created_at"])]
    return [*cells, gone if checkpoint["removed_at"] else kept]


@click.command()
@number_argument
@asks_web
def stop(api: ApiClient, out: Output, task: int) -> None:
    """Stop task NUMBER: a pending task immediately, a running one within seconds."""
    record = api.stop(task)
    if out.as_json:
        out.document({"task": record})
    elif Snapshot(record).finished:
        out.say(f"Task {task} was stopped.")
    else:
        out.say(f"Task {task} will be stopped; watch it with: fedsim watch {task}")


@click.command()
@number_argument
@watch_option
@asks_web
def resume(api: ApiClient, out: Output, task: int, then_watch: bool) -> int:
    """Continue the failed or stopped task NUMBER after its last committed round.

    For example after an upgrade or a repair. The result is that of a task that was not interrupted. The server keeps
    what this needs for a limited time (`retention.resume_days`).
    """
    return _goes_on(api, out, api.resume(task), then_watch=then_watch)


@click.command("continue")
@number_argument
@click.option("--rounds", type=click.IntRange(1), required=True, help="How many rounds more.")
@watch_option
@asks_web
def continue_task(api: ApiClient, out: Output, task: int, rounds: int, then_watch: bool) -> int:
    """Give the completed task NUMBER more rounds.

    The result is that of a task that had all of these rounds from the start. The server keeps what this needs for a
    limited time (`retention.resume_days`) and of a limited number of tasks (`retention.continue_tasks`).
    """
    return _goes_on(api, out, api.continue_task(task, rounds), then_watch=then_watch)


def _goes_on(api: ApiClient, out: Output, record: Json, *, then_watch: bool) -> int:
    """Say that a task goes on, and watch it if that is wanted."""
    task, code = record["number"], EX_OK
    out.say(f"Task {task} continues after round {record['resume_round']} as soon as its nodes are online.")
    if then_watch:
        snapshot = watch_task(api, out, task)
        hint_at_download(out, snapshot)
        record, code = snapshot.record, outcome_code(snapshot)
    if out.as_json:
        out.document({"task": record})
    return code


@click.command()
@number_argument
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@asks_web
def delete(api: ApiClient, out: Output, task: int, yes: bool) -> None:
    """Permanently delete the finished task NUMBER with its checkpoints."""
    if not yes:
        click.confirm(f"Delete task {task} with all its checkpoints?", abort=True, err=True)
    record = api.delete(task)
    if out.as_json:
        out.document({"task": record})
    else:
        out.say(f"Task {task} will be deleted by the server shortly.")
