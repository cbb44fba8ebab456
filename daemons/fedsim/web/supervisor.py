"""gunicorn's supervisor as systemd wants one: it feeds the watchdog from its loop, and says when it reloads."""

from __future__ import annotations

import os
import time

from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from fedsim.daemon import notify


class Supervisor(Arbiter):  # type: ignore[misc] # gunicorn has no types
    """Its loop looks after the process that serves about every second; one that does not answer it replaces."""

    def murder_workers(self) -> None:
        """A turn of the loop: the watchdog hears of the loop that watches, not of a thread beside it."""
        super().murder_workers()
        notify("WATCHDOG=1")

    def start(self) -> None:
        """Listen. gunicorn would say READY here, before anybody serves; our own comes from the process that does."""
        told = os.environ.pop("NOTIFY_SOCKET", None)
        super().start()
        if told is not None:
            os.environ["NOTIFY_SOCKET"] = told

    def handle_hup(self) -> None:
        """A reload: a new process takes over, and says READY when it serves; with a wrong file the old one goes on."""
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        if self.app.read_again():
            super().handle_hup()
        else:
            notify("READY=1")

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """The end."""
        notify("STOPPING=1")
        super().halt(reason, exit_status)


class EventLogger(Logger):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's messages go the way of all others, as events."""

    def setup(self, cfg: object) -> None:
        """Take gunicorn's own handlers away."""
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
