"""gunicorn's supervisor under systemd: its main loop feeds the watchdog, and reloads are reported."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from fedsim.runtime.systemd import notify, notify_reloading


class Supervisor(Arbiter):  # type: ignore[misc] # gunicorn has no types
    """Checks the worker process about every second and replaces one that does not answer."""

    def __init__(self, app: BaseApplication) -> None:
        self._worker_ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        super().__init__(app)

    def _report_worker_ready(self, _: object) -> None:
        """Runs in the worker process as soon as it serves."""
        os.eventfd_write(self._worker_ready, 1)
        os.kill(os.getppid(), signal.SIGCHLD)  # ends the one-second sleep of gunicorn's loop

    def murder_workers(self) -> None:
        """One iteration of the main loop; it feeds the watchdog itself, so a stalled loop is noticed."""
        super().murder_workers()
        notify("WATCHDOG=1", wait=False)
        with suppress(BlockingIOError):
            os.eventfd_read(self._worker_ready)
            self.app.report_ready()

    def setup(self, app: BaseApplication) -> None:
        """Apply the settings, at the start and for a reload."""
        super().setup(app)
        self.cfg.set("post_worker_init", self._report_worker_ready)

    def start(self) -> None:
        """Listen. Hides the socket of systemd, as gunicorn would report READY before a worker serves."""
        notify_socket = os.environ.pop("NOTIFY_SOCKET", None)
        super().start()
        if notify_socket is not None:
            os.environ["NOTIFY_SOCKET"] = notify_socket

    def handle_hup(self) -> None:
        """Reload: a new worker serves, and READY follows once the old one is gone; an invalid file changes nothing."""
        notify_reloading()
        if self.app.reload_config():
            super().handle_hup()
        else:
            self.app.report_ready()

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop, and report it to systemd."""
        notify("STOPPING=1")
        super().halt(reason, exit_status)


class EventLogger(Logger):  # type: ignore[misc] # gunicorn has no types
    """Sends gunicorn's messages to our log."""

    def setup(self, cfg: object) -> None:
        """Remove gunicorn's own handlers."""
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
