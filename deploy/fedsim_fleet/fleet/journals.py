"""Merges the journals of all hosts in chronological order."""

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
from fedsim_fleet.fleet.parallel import connect_all
from fedsim_fleet.fleet.ssh import Connection

COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red", "bright_cyan", "bright_green")
# While following, how long an entry is held back for an earlier one of another host.
REORDER_SECONDS = 0.5
# While following, the delay before reconnecting to a host whose connection was lost.
RECONNECT_SECONDS = 3.0
_ERROR, _WARNING = 3, 4  # syslog's priorities


@dataclass(order=True, frozen=True)
class Entry:
    """A journal entry. `at`: microseconds since the epoch, by that host's clock; `cursor`: its position."""

    at: int
    host: str
    unit: str = field(compare=False)
    text: str = field(compare=False)
    priority: int = field(compare=False)
    cursor: str = field(compare=False, default="")


@dataclass(frozen=True)
class UnreadableJournal:
    """A host whose journal cannot be read, or no longer."""

    host: str
    why: str


@dataclass(frozen=True)
class JournalQuery:
    """Selects entries: a task's, or all of fedsim; `since` in the syntax of journalctl."""

    task: int | None = None
    since: str | None = None

    def command(self) -> list[str]:
        """The command that prints the entries on a host."""
        command = ["journalctl", "--output=json", "--quiet", "--no-pager"]
        command += ["--unit=fedsim*"] if self.task is None else [f"FEDSIM_TASK={self.task}"]
        return [*command, f"--since={self.since}"] if self.since else command

    def following(self, cursor: str) -> list[str]:
        """The command that follows the journal, from a position if given; it ends when the connection is closed."""
        command = [*replace(self, since=None).command(), f"--after-cursor={cursor}"] if cursor else self.command()
        # journalctl notices a closed connection only when it writes; `cat` ends at once.
        return ["sh", "-c", '"$@" & cat > /dev/null; kill $!', "sh", *command, "--follow", "--no-tail"]


def parse(host: str, line: str) -> Entry | None:
    """Parse a line of `journalctl --output=json`; None if it is not an entry."""
    try:
        record = json.loads(line)
        at = int(record["__REALTIME_TIMESTAMP"])
        message = record.get("MESSAGE") or ""
        if isinstance(message, list):  # not UTF-8: journalctl prints a list of bytes
            message = bytes(message).decode(errors="replace")
        unit = record.get("_SYSTEMD_UNIT") or record.get("SYSLOG_IDENTIFIER") or ""
        priority, cursor = int(record.get("PRIORITY") or 6), str(record.get("__CURSOR") or "")
        return Entry(at, host, plain(unit).removesuffix(".service"), str(message), priority, cursor)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def merged(streams: Iterable[Iterator[Entry]]) -> Iterator[Entry]:
    """Merge sorted streams lazily."""
    return heapq.merge(*streams)


def render(entry: Entry, colours: dict[str, str], width: int) -> Text:
    """Format an entry for the terminal."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at / 1e6))
    head = f"{moment}.{entry.at % 1_000_000 // 1000:03d} {entry.host:<{width}} "
    text = Text(head, style=colours[entry.host])
    text.append(f"{entry.unit}: ", style="dim")
    style = "bold red" if entry.priority <= _ERROR else "yellow" if entry.priority == _WARNING else ""
    text.append("\n    ".join(plain(line) for line in entry.text.splitlines()), style=style)
    return text


def colours_of(hosts: Sequence[Host]) -> dict[str, str]:
    """Assign a colour to each host."""
    return {host.name: COLOURS[place % len(COLOURS)] for place, host in enumerate(hosts)}


def read_all(
    hosts: Sequence[Host], query: JournalQuery, seconds: float, on_unreadable: Callable[[UnreadableJournal], None]
) -> Iterator[Entry]:
    """All entries in chronological order; a host that cannot be read is reported and skipped."""

    def entries(connection: Connection) -> Iterator[Entry]:
        try:
            yield from _entries(connection, query.command())
        except FedsimError as error:
            on_unreadable(UnreadableJournal(connection.host.name, str(error)))

    with ExitStack() as stack:
        streams = []
        for name, connection in connect_all(hosts, seconds).items():
            if isinstance(connection, FedsimError):
                on_unreadable(UnreadableJournal(name, str(connection)))
            else:
                streams.append(entries(stack.enter_context(connection)))
        yield from merged(streams)


def _entries(connection: Connection, command: list[str]) -> Iterator[Entry]:
    for line in connection.lines(command):
        if entry := parse(connection.host.name, line):
            yield entry


def follow_all(
    hosts: Sequence[Host], query: JournalQuery, seconds: float, on_unreadable: Callable[[UnreadableJournal], None]
) -> Iterator[Entry]:
    """Follow the journals, without end.

    Entries that arrive within half a second are sorted. A host that becomes unreachable is reported once; reading
    resumes at its last entry when it is reachable again.
    """
    arrived: queue.Queue[Entry] = queue.Queue()
    followers = [_Follower(host, query, seconds, arrived.put, on_unreadable) for host in hosts]
    try:
        for follower in followers:
            follower.start()
        yield from in_order(arrived)
    finally:
        for follower in followers:
            follower.stop()


class _Follower(threading.Thread):
    """Follows one host's journal, and reconnects when the connection is lost."""

    def __init__(
        self,
        host: Host,
        query: JournalQuery,
        seconds: float,
        arrived: Callable[[Entry], None],
        on_unreadable: Callable[[UnreadableJournal], None],
    ) -> None:
        super().__init__(name=host.name, daemon=True)
        self._host, self._query, self._seconds = host, query, seconds
        self._arrived, self._on_unreadable = arrived, on_unreadable
        self._stopped = threading.Event()
        self._connection: Connection | None = None

    def stop(self) -> None:
        """Close the connection; a thread that is still connecting ends afterwards."""
        self._stopped.set()
        if self._connection is not None:
            self._connection.close()

    def run(self) -> None:
        cursor, reported = "", False
        while not self._stopped.is_set():
            try:
                with Connection(self._host, self._seconds) as self._connection:
                    for entry in _entries(self._connection, self._query.following(cursor)):
                        cursor, reported = entry.cursor or cursor, False
                        self._arrived(entry)
                raise Unavailable("its journal ended")
            except FedsimError as error:
                if not reported and not self._stopped.is_set():
                    self._on_unreadable(UnreadableJournal(self._host.name, str(error)))
                reported = True
            self._stopped.wait(RECONNECT_SECONDS)


def in_order(arrived: queue.Queue[Entry]) -> Iterator[Entry]:
    """Yield entries from a queue in chronological order; each is held back briefly, in case an earlier one arrives."""
    held: list[tuple[Entry, float]] = []
    while True:
        left = None if not held else max(0.0, held[0][1] + REORDER_SECONDS - time.monotonic())
        with suppress(queue.Empty):
            heapq.heappush(held, (arrived.get(timeout=left), time.monotonic()))
        while held and time.monotonic() >= held[0][1] + REORDER_SECONDS:
            yield heapq.heappop(held)[0]
