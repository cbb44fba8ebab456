"""The journals of all hosts as one story, in the order of time."""

from __future__ import annotations

import heapq
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from rich.text import Text

from fedsim.cli.output import plain
from fedsim.errors import FedsimError, Unavailable
from fedsim_fleet.fleet.inventory import Host
from fedsim_fleet.fleet.ssh import Connection
from fedsim_fleet.fleet.together import connect_all

COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red", "bright_cyan", "bright_green")
# While following, how long an entry waits for an earlier one of another host.
PATIENCE_SECONDS = 0.5
# While following, how long a host that went away is left alone before it is asked again.
AGAIN_SECONDS = 3.0
_WORST = 3  # syslog's "error"


@dataclass(order=True, frozen=True)
class Entry:
    """A line of a host's journal. `at` is that host's clock, in microseconds since the epoch; `cursor` its place."""

    at: int
    host: str
    unit: str = field(compare=False)
    text: str = field(compare=False)
    priority: int = field(compare=False)
    cursor: str = field(compare=False, default="")


@dataclass(frozen=True)
class Trouble:
    """A host whose journal is not, or no longer, among them."""

    host: str
    why: str


@dataclass(frozen=True)
class Question:
    """Which entries: a task's, or all of fedsim's; `since` as journalctl takes it."""

    task: int | None = None
    since: str | None = None

    def command(self) -> list[str]:
        """What a host runs."""
        asked = ["journalctl", "--output=json", "--quiet", "--no-pager"]
        asked += ["--unit=fedsim*"] if self.task is None else [f"FEDSIM_TASK={self.task}"]
        return [*asked, f"--since={self.since}"] if self.since else asked

    def following(self, cursor: str) -> list[str]:
        """What a host runs to go on, after an entry's place if there is one; it ends when the connection is closed."""
        asked = [*replace(self, since=None).command(), f"--after-cursor={cursor}"] if cursor else self.command()
        # Nothing else would end a journalctl that has nothing more to write.
        return ["sh", "-c", '"$@" & cat > /dev/null; kill $!', "sh", *asked, "--follow", "--no-tail"]


def parse(host: str, line: str) -> Entry | None:
    """An entry of `journalctl --output=json`; None for what is none."""
    try:
        told = json.loads(line)
        at = int(told["__REALTIME_TIMESTAMP"])
        message = told.get("MESSAGE") or ""
        if isinstance(message, list):  # bytes that are no text
            message = bytes(message).decode(errors="replace")
        unit = told.get("_SYSTEMD_UNIT") or told.get("SYSLOG_IDENTIFIER") or ""
        priority, cursor = int(told.get("PRIORITY") or 6), str(told.get("__CURSOR") or "")
        return Entry(at, host, plain(unit).removesuffix(".service"), str(message), priority, cursor)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def merged(streams: Iterable[Iterator[Entry]]) -> Iterator[Entry]:
    """Streams that are each in order, as one; each is read only as far as needed."""
    return heapq.merge(*streams)


def shown(entry: Entry, colours: dict[str, str], width: int) -> Text:
    """A line for a person."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at / 1e6))
    head = f"{moment}.{entry.at % 1_000_000 // 1000:03d} {entry.host:<{width}} "
    text = Text(head, style=colours[entry.host])
    text.append(f"{entry.unit}: ", style="dim")
    style = "bold red" if entry.priority <= _WORST else "yellow" if entry.priority == _WORST + 1 else ""
    text.append("\n    ".join(plain(line) for line in entry.text.splitlines()), style=style)
    return text


def colours_of(hosts: Sequence[Host]) -> dict[str, str]:
    """A colour for each host."""
    return {host.name: COLOURS[place % len(COLOURS)] for place, host in enumerate(hosts)}


def read_all(
    hosts: Sequence[Host], question: Question, seconds: float, trouble: Callable[[Trouble], None]
) -> Iterator[Entry]:
    """What all journals hold, in order; a host that cannot be read is told of and left out."""

    def entries(connection: Connection) -> Iterator[Entry]:
        try:
            yield from _entries(connection, question.command())
        except FedsimError as error:
            trouble(Trouble(connection.host.name, str(error)))

    with ExitStack() as stack:
        streams = []
        for name, connection in connect_all(hosts, seconds).items():
            if isinstance(connection, FedsimError):
                trouble(Trouble(name, str(connection)))
            else:
                streams.append(entries(stack.enter_context(connection)))
        yield from merged(streams)


def _entries(connection: Connection, asked: list[str]) -> Iterator[Entry]:
    for line in connection.lines(asked):
        if entry := parse(connection.host.name, line):
            yield entry


def follow_all(
    hosts: Sequence[Host], question: Question, seconds: float, trouble: Callable[[Trouble], None]
) -> Iterator[Entry]:
    """Journals as they grow, until the caller has enough.

    Entries that come within half a second are put in order. A host that goes away is told of once and asked again until
    it is back; then its journal goes on where it ended.
    """
    came: queue.Queue[Entry] = queue.Queue()
    followers = [_Follower(host, question, seconds, came.put, trouble) for host in hosts]
    try:
        for follower in followers:
            follower.start()
        yield from in_order(came)
    finally:
        for follower in followers:
            follower.stop()


class _Follower(threading.Thread):
    """Reads one host's journal, over connection after connection."""

    def __init__(
        self,
        host: Host,
        question: Question,
        seconds: float,
        came: Callable[[Entry], None],
        trouble: Callable[[Trouble], None],
    ) -> None:
        super().__init__(name=host.name, daemon=True)
        self._host, self._question, self._seconds = host, question, seconds
        self._came, self._trouble = came, trouble
        self._stopped = threading.Event()
        self._connection: Connection | None = None

    def stop(self) -> None:
        """Hang up; a thread that is just connecting sees it then."""
        self._stopped.set()
        if self._connection is not None:
            self._connection.close()

    def run(self) -> None:
        cursor, silent = "", False
        while not self._stopped.is_set():
            try:
                with Connection(self._host, self._seconds) as self._connection:
                    for entry in _entries(self._connection, self._question.following(cursor)):
                        cursor, silent = entry.cursor or cursor, False
                        self._came(entry)
                raise Unavailable("its journal ended")
            except FedsimError as error:
                if not silent and not self._stopped.is_set():
                    self._trouble(Trouble(self._host.name, str(error)))
                silent = True
            self._stopped.wait(AGAIN_SECONDS)


def in_order(came: queue.Queue[Entry]) -> Iterator[Entry]:
    """Entries out of a queue, without end: each is held for a moment, in case an earlier one is on its way."""
    held: list[tuple[Entry, float]] = []
    while True:
        left = None if not held else max(0.0, held[0][1] + PATIENCE_SECONDS - time.monotonic())
        with suppress(queue.Empty):
            heapq.heappush(held, (came.get(timeout=left), time.monotonic()))
        while held and time.monotonic() >= held[0][1] + PATIENCE_SECONDS:
            yield heapq.heappop(held)[0]
