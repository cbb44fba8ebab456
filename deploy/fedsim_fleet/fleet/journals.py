"""The journals of all hosts as one story, in the order of time."""

from __future__ import annotations

import heapq
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from rich.text import Text

from fedsim.cli.output import plain
from fedsim.errors import FedsimError
from fedsim_fleet.fleet.inventory import Host
from fedsim_fleet.fleet.ssh import Connection

COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red", "bright_cyan", "bright_green")
# While following, how long an entry waits for an earlier one of another host.
PATIENCE_SECONDS = 0.5
_WORST = 3  # syslog's "error"


@dataclass(order=True, frozen=True)
class Entry:
    """A line of a host's journal. `at` is that host's clock, in microseconds since the epoch."""

    at: int
    host: str
    unit: str = field(compare=False)
    text: str = field(compare=False)
    priority: int = field(compare=False)


@dataclass(frozen=True)
class Trouble:
    """A host whose journal is not, or no longer, among them."""

    host: str
    why: str


def command(task: int | None, since: str | None, *, follow: bool) -> list[str]:
    """What is run on a host. Following ends when its input does, that is, when the connection is closed."""
    asked = ["journalctl", "--output=json", "--quiet", "--no-pager"]
    asked += ["--unit=fedsim*"] if task is None else [f"FEDSIM_TASK={task}"]
    if since:
        asked.append(f"--since={since}")
    if not follow:
        return asked
    asked += ["--follow", "--no-tail"]
    # Nothing else would end a journalctl that has nothing more to write.
    return ["sh", "-c", '"$@" & cat > /dev/null; kill $!', "sh", *asked]


def parse(host: str, line: str) -> Entry | None:
    """An entry of `journalctl --output=json`; None for what is none."""
    try:
        told = json.loads(line)
        at = int(told["__REALTIME_TIMESTAMP"])
        message = told.get("MESSAGE") or ""
        if isinstance(message, list):  # bytes that are no text
            message = bytes(message).decode(errors="replace")
        unit = told.get("_SYSTEMD_UNIT") or told.get("SYSLOG_IDENTIFIER") or ""
        return Entry(at, host, plain(unit).removesuffix(".service"), str(message), int(told.get("PRIORITY") or 6))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def merged(streams: Iterable[Iterator[Entry]]) -> Iterator[Entry]:
    """Streams that are each in order, as one; each is read only as far as needed."""
    return heapq.merge(*streams)


def shown(entry: Entry, colours: dict[str, str], width: int) -> Text:
    """A line for a person."""
    moment = time.strftime("%m-%d %H:%M:%S", time.localtime(entry.at / 1e6))
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
    hosts: Sequence[Host], asked: list[str], seconds: float, trouble: Callable[[Trouble], None]
) -> Iterator[Entry]:
    """What all journals hold, in order; a host that cannot be read is told of and left out."""
    with ExitStack() as stack:
        connections = _connected(hosts, seconds, trouble, stack)
        yield from merged([_entries(connection, asked, trouble) for connection in connections])


def _connected(
    hosts: Sequence[Host], seconds: float, trouble: Callable[[Trouble], None], stack: ExitStack
) -> list[Connection]:
    found: dict[str, Connection | FedsimError] = {}

    def connect(host: Host) -> None:
        try:
            found[host.name] = Connection(host, seconds)
        except FedsimError as error:
            found[host.name] = error

    threads = [threading.Thread(target=connect, args=(host,), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connections = []
    for name, connection in found.items():
        if isinstance(connection, FedsimError):
            trouble(Trouble(name, str(connection)))
        else:
            stack.callback(connection.close)
            connections.append(connection)
    return connections


def _entries(connection: Connection, asked: list[str], trouble: Callable[[Trouble], None]) -> Iterator[Entry]:
    try:
        for line in connection.lines(asked):
            if entry := parse(connection.host.name, line):
                yield entry
    except FedsimError as error:
        trouble(Trouble(connection.host.name, str(error)))


def follow_all(
    hosts: Sequence[Host], asked: list[str], seconds: float, trouble: Callable[[Trouble], None]
) -> Iterator[Entry]:
    """Journals as they grow, until the caller has enough; entries that come within half a second are put in order."""
    came: queue.Queue[Entry | None] = queue.Queue()
    with ExitStack() as stack:
        connections = _connected(hosts, seconds, trouble, stack)

        def read(connection: Connection) -> None:
            for entry in _entries(connection, asked, trouble):
                came.put(entry)
            came.put(None)

        for connection in connections:
            threading.Thread(target=read, args=(connection,), daemon=True).start()
        yield from in_order(came, len(connections))


def in_order(came: queue.Queue[Entry | None], readers: int) -> Iterator[Entry]:
    """Entries out of a queue: each is held for a moment, in case one of an earlier time is on its way.

    Ends when each of the `readers` has put its None.
    """
    held: list[tuple[Entry, float]] = []
    while readers or held:
        left = None if not held else max(0.0, held[0][1] + PATIENCE_SECONDS - time.monotonic())
        try:
            entry = came.get(timeout=left) if readers else None
            if entry is None and readers:
                readers -= 1
            elif entry is not None:
                heapq.heappush(held, (entry, time.monotonic()))
        except queue.Empty:
            pass
        while held and (not readers or time.monotonic() >= held[0][1] + PATIENCE_SECONDS):
            yield heapq.heappop(held)[0]
