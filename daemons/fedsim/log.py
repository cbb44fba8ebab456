"""Logs: an event name plus fields, few and rich lines.

Under systemd every field is a native journal field (`FEDSIM_TASK`, `FEDSIM_ROUND`, `FEDSIM_NODE`, `FEDSIM_EVENT`),
so that `journalctl FEDSIM_TASK=42` tells a task's story; elsewhere the same events go to the terminal.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def _to_journal(_: Any, level: str, event: MutableMapping[str, Any]) -> str:
    """Send the event with its fields; returns nothing to print."""
    from cysystemd import journal  # noqa: PLC0415 - needs libsystemd, which only a systemd host is sure to have

    name = str(event.pop("event"))
    trace = event.pop("exception", None)
    shown = " ".join(f"{key}={value}" for key, value in event.items() if not key.startswith("_"))
    message = f"{name} {shown}".rstrip() + (f"\n{trace}" if trace else "")
    fields = {f"FEDSIM_{key.upper()}": str(value) for key, value in event.items()}
    journal.send(
        message=message,
        priority=_PRIORITY.get(level, 6),
        SYSLOG_IDENTIFIER=os.path.basename(sys.argv[0]),  # noqa: PTH119
        FEDSIM_EVENT=name,
        **fields,
    )
    raise structlog.DropEvent


def configure_logging(*, verbose: bool = False) -> None:
    """Send structlog's events, and the standard library's warnings, to the journal or the terminal."""
    level = logging.DEBUG if verbose else logging.INFO
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.StackInfoRenderer(),
    ]
    if os.environ.get("JOURNAL_STREAM"):
        processors += [structlog.processors.format_exc_info, _to_journal]
    else:
        processors += [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=24,
                exception_formatter=structlog.dev.plain_traceback,  # the other shows variables: people's data
            ),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_logger(**fields: Any) -> Any:
    """A logger with `fields` bound to each of its events."""
    return structlog.get_logger(**fields)
