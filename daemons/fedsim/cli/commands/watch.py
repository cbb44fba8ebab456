"""`fedsim watch`: the progress of a task, as a live bar on a terminal, otherwise as one line for each change."""

from __future__ import annotations

import click
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from fedsim.cli.api import ApiClient
from fedsim.cli.follow import PollFailure, Snapshot, follow
from fedsim.cli.options import asks_web
from fedsim.cli.output import Output, plain
from fedsim.errors import EX_FAILED, EX_OK

GIVE_UP_SECONDS = 600.0
retry_option = click.option(
    "--retry-seconds",
    type=click.FloatRange(0),
    default=GIVE_UP_SECONDS,
    show_default=True,
    help="How long to retry while the web does not answer.",
)


@click.command()
@click.argument("number", type=click.IntRange(1))
@retry_option
@asks_web
def watch(api: ApiClient, out: Output, number: int, retry_seconds: float) -> int:
    """Watch task NUMBER until it has finished; the exit code is 0 if it completed, otherwise 1."""
    snapshot = watch_task(api, out, number, retry_seconds)
    hint_at_download(out, snapshot)
    if out.as_json:
        out.document({"task": snapshot.record})
    return outcome_code(snapshot)


def hint_at_download(out: Output, snapshot: Snapshot) -> None:
    """Show how to download the model of a completed task."""
    if snapshot.state == "completed":
        out.note(f"Download the model with: fedsim download {snapshot.number}")


def outcome_code(snapshot: Snapshot) -> int:
    """The exit code for a finished task."""
    return EX_OK if snapshot.state == "completed" else EX_FAILED


def watch_task(api: ApiClient, out: Output, number: int, retry_seconds: float = GIVE_UP_SECONDS) -> Snapshot:
    """Show a task's progress until it has finished; returns its final state."""
    show = _Bar(out) if out.talk.is_terminal else _Lines(out)
    last: Snapshot | None = None
    try:
        with show:
            for news in follow(api, number, give_up_seconds=retry_seconds):
                show.show(news)
                last = news if isinstance(news, Snapshot) else last
    except KeyboardInterrupt:
        out.note(f"The task continues; watch it again with: fedsim watch {number}")
        raise
    if last is None:  # unreachable: `follow` ends only after a finished task
        raise AssertionError
    out.say(last.outcome)
    if last.record["warning"]:
        out.say(f"WARNING: {last.record['warning']}")
    return last


class _Lines:
    """Prints one line for each visible change."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._said = ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, news: Snapshot | PollFailure) -> None:
        """Print a line, unless it repeats the last one."""
        if isinstance(news, PollFailure):
            line = news.text
        elif news.finished:
            return
        elif news.state == "pending":
            line = f"Task {news.number} pending: {news.activity}"
        else:
            line = f"Task {news.number} {news.state}: {news.course or news.record['phase']}"
            # Every round waits for nodes; this is shown only if the round is late.
            line += f", {news.activity}" if news.held_up else f", {news.time_left}" if news.time_left else ""
        if line != self._said:
            self._said = line
            (self._out.note if isinstance(news, PollFailure) else self._out.say)(line)


class _Bar:
    """A progress bar with numbers, and below it the activity of the task or a problem."""

    def __init__(self, out: Output) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("round {task.completed:.0f} of {task.fields[rounds]}"),
            TextColumn("{task.fields[metrics]}"),
        )
        self._progress = Progress(*columns, console=out.talk, expand=True)
        self._row = self._progress.add_task("", total=None, rounds="…", metrics="")
        self._below = Text("", overflow="fold")
        self._live = Live(Group(self._progress, self._below), console=out.talk, transient=True)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, news: Snapshot | PollFailure) -> None:
        """Update the bar."""
        if isinstance(news, PollFailure):
            self._below.plain, self._below.style = plain(news.text), "yellow"
        else:
            # A terminal of 80 columns has no space for more next to the bar.
            below = ", ".join(filter(None, [news.time_left, news.details, news.activity]))
            self._below.plain, self._below.style = plain(below), ""
            self._progress.update(
                self._row,
                description=f"Task {news.number} {news.state}",
                completed=news.rounds_done,
                total=None if news.state == "pending" else news.num_rounds,
                rounds=news.num_rounds,
                metrics=news.headline,
            )
        self._live.refresh()
