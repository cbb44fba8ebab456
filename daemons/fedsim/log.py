"""Structured logging: an event name plus fields.

Under systemd every field is a native journal field (`FEDSIM_TASK`, `FEDSIM_ROUND`, `FEDSIM_NODE`, `FEDSIM_EVENT`),
so that `journalctl FEDSIM_TASK=42` shows all entries of a task; elsewhere the same events go to the terminal. What is
not visible in a peer's text (escape sequences, line ends, bidirectional marks) is escaped in both.

A line that cannot be written (the terminal was closed, the pipe has no reader, the disk is full) is dropped and
counted: no process ends because of its log. The next line that can be written is followed by the number of those lost.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import structlog

from fedsim.text import plain, plain_lines

_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}

Event = MutableMapping[str, Any]


class _Journal:
    """Sends events with their fields to the journal."""

    def __init__(self, identifier: str) -> None:
        self._identifier = identifier

    def __call__(self, _: Any, level: str, event: Event) -> Event:
        """Send the event as one entry; return it for printing only if the journal cannot be reached."""
        from cysystemd import journal  # noqa: PLC0415 - a native library, which only a systemd host is sure to load

        fields = dict(event)
        name = str(fields.pop("event"))
        trace = fields.pop("exception", None)
        shown = " ".join(f"{key}={plain(_readable(value))}" for key, value in fields.items())
        code = journal.send(
            message=f"{plain(name)} {shown}".rstrip() + (f"\n{plain_lines(trace)}" if trace else ""),
            priority=_PRIORITY.get(level, 6),
            SYSLOG_IDENTIFIER=self._identifier,
            FEDSIM_EVENT=name,
            **{f"FEDSIM_{key.upper()}": str(value) for key, value in fields.items() if value is not None},
        )
        if code < 0:
            return event
        raise structlog.DropEvent


class _LogLines:
    """Writes lines to standard error, without a buffer that would keep what could not be written."""

    def __init__(self) -> None:
        self.dropped = 0
        self._unreported = 0
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        """Write a line, or drop and count it."""
        data = memoryview(f"{line}\n".encode(_encoding(), "backslashreplace"))
        with self._lock:
            try:
                while data:
                    data = data[os.write(2, data) :]
            except OSError:
                self.dropped += 1
                self._unreported += 1
                return
            lost, self._unreported = self._unreported, 0
        if lost:
            structlog.get_logger().warning("log_lines_dropped", lines=lost)

    log = debug = info = warning = error = critical = exception = msg


_LINES = _LogLines()


def _encoding() -> str:
    return getattr(sys.stderr, "encoding", None) or "utf-8"


def dropped_lines() -> int:
    """The number of lines of this process that could not be written."""
    return _LINES.dropped


def _open_missing_streams() -> None:
    """Open the null device for standard streams that are closed: other files would take their place."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _readable(value: Any) -> Any:
    """Format a value for people: fractions with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else value


def _readably(_: Any, __: str, event: Event) -> Event:
    """Format the values for the terminal, which text of others must not manipulate."""
    readable = {key: _readable(value) for key, value in event.items()}
    return {key: plain(value) if isinstance(value, str) else value for key, value in readable.items()}


def _plain_traceback(stream: TextIO, exc_info: Any) -> None:
    """The default formatter shows variables, which may be data."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write(plain_lines(text.getvalue()))


class _Events(logging.Handler):
    """Turns log records of libraries into events."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record."""
        fields: dict[str, Any] = {"library": record.name, "text": record.getMessage()}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        structlog.get_logger().log(level, "library_message", **fields)


def _writes_to_the_journal() -> bool:
    """Whether standard error is the journal: processes may inherit the variable, but another stream."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    with suppress(OSError):
        there = os.fstat(2)
        return (device, inode) == (str(there.st_dev), str(there.st_ino))
    return False


def configure_logging(*, verbose: bool = False, identifier: str | None = None, **fields: Any) -> None:
    """Send events, log records of libraries and uncaught exceptions to the journal or the terminal.

    Args:
        verbose: also log details.
        identifier: SYSLOG_IDENTIFIER in the journal; None: the command's name.
        fields: added to every event that does not set them itself.
    """
    _open_missing_streams()
    level = logging.DEBUG if verbose else logging.INFO

    def with_fields(_: Any, __: str, event: Event) -> Event:
        return {**fields, **event}

    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        with_fields,
        structlog.processors.StackInfoRenderer(),
    ]
    if _writes_to_the_journal():
        processors += [
            structlog.processors.format_exc_info,
            _Journal(identifier or Path(sys.argv[0]).name),
        ]
    processors += [
        structlog.processors.add_log_level,
        _readably,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        structlog.dev.ConsoleRenderer(
            colors=os.isatty(2),
            pad_event_to=24,
            exception_formatter=_plain_traceback,
        ),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _LINES,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Events()], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda end: _uncaught(end.exc_type, end.exc_value or end.exc_type(), end.exc_traceback)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log an uncaught exception as one event."""
    if issubclass(kind, SystemExit):
        return
    structlog.get_logger().critical("crashed", thread=threading.current_thread().name, exc_info=(kind, error, trace))


def get_logger(**fields: Any) -> Any:
    """A logger with `fields` bound to each of its events."""
    return structlog.get_logger(**fields)
