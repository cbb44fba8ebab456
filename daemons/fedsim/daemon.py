"""The contract of a daemon: signals set flags, READY when really ready, STOPPING, exit codes that systemd understands.

A daemon fills in three methods: `setup`, `run_once` (one turn of its loop, which waits for events) and `teardown`.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import click
from pydantic import BaseModel

from fedsim import __version__
from fedsim.config import Measured, load_config
from fedsim.errors import EX_OK, EX_UNAVAILABLE, ConfigError, FedsimError
from fedsim.log import configure_logging, get_logger
from fedsim.metrics import MetricsEndpoint, ProcessMetrics

Config = TypeVar("Config", bound=Measured)
Model = TypeVar("Model", bound=BaseModel)

EXTEND_START_USEC = 30_000_000


def notify(*states: str) -> None:
    """Tell systemd (sd_notify's protocol: a datagram to $NOTIFY_SOCKET); nothing happens where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_UNIX, kind) as sock, suppress(ConnectionRefusedError, FileNotFoundError):
        sock.sendto("\n".join(states).encode(), address)


class Daemon(ABC, Generic[Config]):
    """One long-running process. `wake_fd` becomes readable when a signal has set a flag, so a loop need not poll."""

    name: str
    config_model: type[Config]
    metrics_model: type[ProcessMetrics]
    metrics: ProcessMetrics

    def __init__(self, config: Config, config_path: Path) -> None:
        self.config = config
        self.config_path = config_path
        self.log = get_logger()
        self.metrics = self.metrics_model()
        self.stopping = False
        self.reload_wanted = False
        self._status = ""
        self._endpoint: MetricsEndpoint | None = None
        self.wake_fd, self._wake_write = socket.socketpair()
        self.wake_fd.setblocking(False)
        self._wake_write.setblocking(False)

    @abstractmethod
    def setup(self) -> None:
        """Acquire everything; on return the daemon is ready and says so."""

    @abstractmethod
    def run_once(self) -> None:
        """Wait for events and deal with them; returns at least once every few seconds, and feeds the watchdog."""

    @abstractmethod
    def teardown(self) -> None:
        """Let go of everything that `setup` acquired, also after a failure half-way."""

    @classmethod
    def log_fields(cls, config: Config) -> dict[str, Any]:  # noqa: ARG003 - for those that override it
        """What stands in every event of this process that does not say otherwise."""
        return {}

    def reload(self, config: Config) -> None:
        """Take over what can change without a restart."""
        self.config = config

    def status(self, text: str) -> None:
        """What `systemctl status` shows; told only when it has changed."""
        if text != self._status:
            self._status = text
            notify(f"STATUS={' '.join(text.split())}")

    def still_starting(self) -> None:
        """What is waited for may take as long as it takes: neither the start nor the watchdog's time is over."""
        notify("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={EXTEND_START_USEC}")

    def drain_wake(self) -> None:
        """Take the signal wake-ups out of `wake_fd`."""
        try:
            while self.wake_fd.recv(64):
                pass
        except BlockingIOError:
            pass

    def _on_signal(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:
            self.reload_wanted = True
        else:
            self.stopping = True

    def _reload(self) -> None:
        self.reload_wanted = False
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self.reload(load_config(self.config_path, self.config_model))
            self.log.info("reloaded", config=str(self.config_path))
        except ConfigError as error:
            self.log.error("reload_failed", problem=str(error))  # noqa: TRY400 - the message is the story
        notify("READY=1")

    def _tell_metrics(self) -> None:
        if self.config.metrics is not None:
            self._endpoint = MetricsEndpoint(self.config.metrics, self.metrics.registry)
            where = self.config.metrics.model_copy(update={"port": self._endpoint.port})
            self.log.info("metrics_told", address=f"http://{where}/metrics")

    def feed_watchdog(self) -> None:
        """Called by the loop after each turn; a daemon whose work is done elsewhere asks there first."""
        notify("WATCHDOG=1")

    def run(self) -> int:
        """The daemon's life; returns its exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        faulthandler.enable()  # the watchdog's SIGABRT then tells where the loop stood
        try:
            self._tell_metrics()
            self.setup()
            if not self.stopping:
                self.log.info("ready", version=__version__, config=str(self.config_path))
                notify("READY=1")
            while not self.stopping:
                if self.reload_wanted:
                    self._reload()
                with self.metrics.turn.time():
                    self.run_once()
                self.feed_watchdog()
        except FedsimError as error:
            self.log.error("failed", problem=str(error))  # noqa: TRY400
            return error.exit_code
        except OSError as error:
            # A full disk, a folder taken away: nothing is lost, and the next start goes on from what lies there.
            where = f" ({error.filename})" if error.filename else ""
            self.log.exception("failed", problem=f"{error.strerror or error}{where}: see to this host's disk")
            return EX_UNAVAILABLE
        finally:
            notify("STOPPING=1")
            self.teardown()
            if self._endpoint is not None:
                self._endpoint.close()
            signal.set_wakeup_fd(-1)
        self.log.info("stopped")
        return EX_OK


def command_line(
    name: str,
    what_it_does: str,
    model: type[Model],
    run: Callable[[Model, Path], int],
    log_fields: Callable[[Model], dict[str, Any]] = lambda _: {},
) -> click.Command:
    """The command line that every daemon has: --config, --validate-config, --verbose.

    Args:
        name: of the daemon; its command is `fedsim-NAME`, its file NAME.yml.
        what_it_does: for `--help`.
        model: of the file.
        run: lives the daemon's life with a valid configuration (from this file); returns the exit code.
        log_fields: what stands in every event, for such a configuration.
    """

    @click.command(name=f"fedsim-{name}", help=what_it_does)
    @click.option(
        "--config",
        "path",
        type=click.Path(path_type=Path),
        default=Path(f"/etc/fedsim/{name}.yml"),
        show_default=True,
        help="The YAML file to read.",
    )
    @click.option("--validate-config", is_flag=True, help="Check the file, name every problem, and exit (0 or 78).")
    @click.option("--verbose", is_flag=True, help="Log details as well.")
    @click.version_option(__version__)
    def command(path: Path, *, validate_config: bool, verbose: bool) -> None:
        try:
            config = load_config(path, model)
        except ConfigError as error:
            click.echo(str(error), err=True)
            sys.exit(error.exit_code)
        if validate_config:
            click.echo(f"{path} is valid.")
            return
        configure_logging(verbose=verbose, identifier=f"fedsim-{name}", **log_fields(config))
        sys.exit(run(config, path))

    return command


def daemon_main(daemon: type[Daemon[Config]]) -> None:
    """Run a daemon by its command line."""
    what_it_does = (daemon.__doc__ or "").strip()
    command_line(
        daemon.name,
        what_it_does,
        daemon.config_model,
        lambda config, path: daemon(config, path).run(),
        daemon.log_fields,
    )()
