"""gunicorn's supervisor as systemd wants one: it feeds the watchdog from its loop, and says when it reloads."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from fedsim.runtime.systemd import notify, notify_reloading


class Supervisor(Arbiter):  # type: ignore[misc] # gunicorn has no types
    """Its loop looks after the process that serves about every second; one that does not answer it replaces."""

    def __init__(self, app: BaseApplication) -> None:
        self._serving = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        super().__init__(app)

    def _serves(self, _: object) -> None:
        """In the process that serves, as soon as it does."""
        os.eventfd_write(self._serving, 1)
        os.kill(os.getppid(), signal.SIGCHLD)  # gunicorn's loop sleeps for a second, but not through this

    def murder_workers(self) -> None:
        """A turn of the loop: the watchdog hears of the loop that watches, not of a thread beside it."""
        super().murder_workers()
        notify("WATCHDOG=1")
        with suppress(BlockingIOError):
            os.eventfd_read(self._serving)
            self.app.serves()

    def setup(self, app: BaseApplication) -> None:
        """Take the settings over, at the start and for a reload."""
        super().setup(app)
        self.cfg.set("post_worker_init", self._serves)

    def start(self) -> None:
        """Listen. gunicorn would say READY here, before anybody serves."""
        told = os.environ.pop("NOTIFY_SOCKET", None)
        super().start()
        if told is not None:
            os.environ["NOTIFY_SOCKET"] = told

    def handle_hup(self) -> None:
        """A reload: a new process serves, and READY is told once the old one is gone; a wrong file changes nothing."""
        notify_reloading()
        if self.app.read_again():
            super().handle_hup()
        else:
            self.app.serves()

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
