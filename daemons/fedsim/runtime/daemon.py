"""The base of every daemon: signals set flags, READY when ready, STOPPING, exit codes that systemd understands.

A daemon implements `setup` and `run_once` (one turn of its loop, which waits for events). What `setup` opens it pushes
on `resources`, which are closed at the end, last first, also after a failure half-way.
"""

from __future__ import annotations

import faulthandler
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

import click
from pydantic import BaseModel

from fedsim import __version__
from fedsim.command import EPILOG, run_command
from fedsim.config import Measured, load_config
from fedsim.errors import EX_OK, EX_UNAVAILABLE, ConfigError, FedsimError
from fedsim.log import configure_logging, get_logger
from fedsim.metrics import MetricsEndpoint, ProcessMetrics
from fedsim.runtime.systemd import notify, notify_reloading

CONFIG_PATH: Final = "fedsim.config_path"
_FEED_SECONDS: Final = 1.0  # the watchdog's time is longer

Config = TypeVar("Config", bound=Measured)
Model = TypeVar("Model", bound=BaseModel)


def reload_config(path: Path, current: Model, fixed_keys: tuple[str, ...]) -> Model:
    """Load a configuration file again; the keys that only a restart can change keep their values.

    Raises:
        ConfigError: the file cannot be used.
    """
    config = load_config(path, type(current))
    changed = [key for key in fixed_keys if getattr(config, key) != getattr(current, key)]
    if changed:
        get_logger().warning("restart_needed", keys=", ".join(changed))
    return config.model_copy(update={key: getattr(current, key) for key in fixed_keys})


class Daemon(ABC, Generic[Config]):
    """One long-running process. `wake_fd` becomes readable when a signal has set a flag, so a loop need not poll."""

    name: ClassVar[str]
    config_model: type[Config]
    metrics_model: type[ProcessMetrics]
    metrics: ProcessMetrics
    # Keys of the configuration that a reload cannot change: they are in sockets, files and the names that others know.
    fixed_keys: ClassVar[tuple[str, ...]]

    def __init__(self, config: Config, config_path: Path) -> None:
        self.config = config
        self.config_path = config_path
        self.log = get_logger()
        self.metrics = self.metrics_model()
        self.resources = ExitStack()
        self.stopping = False
        self._reload_requested = False
        self._status = ""
        self._feed_at = 0.0

    @abstractmethod
    def setup(self) -> None:
        """Open everything; on return the daemon is ready, which is then reported."""

    @abstractmethod
    def run_once(self) -> None:
        """Wait for events and process them; returns at least once every few seconds, and feeds the watchdog."""

    @classmethod
    def log_fields(cls, config: Config) -> dict[str, Any]:  # noqa: ARG003 - for those that override it
        """Default fields of every event that this process logs."""
        return {}

    def reload(self, config: Config) -> None:
        """Apply a new configuration.

        Raises:
            ConfigError: it cannot be used; then nothing has changed.
        """
        self.config = config

    def publish_status(self, text: str) -> None:
        """Set what `systemctl status` shows; sent only when it has changed."""
        if text != self._status and notify(f"STATUS={' '.join(text.split())}", wait=False):
            self._status = text

    def drain_wake(self) -> None:
        """Read the signals' wake-ups out of `wake_fd`."""
        try:
            while self.wake_fd.recv(64):
                pass
        except BlockingIOError:
            pass

    def feed_watchdog(self) -> None:
        """Called after each turn; a daemon whose work is done on other threads checks those first."""
        now = time.monotonic()
        if now >= self._feed_at:
            self._feed_at = now + _FEED_SECONDS
            notify("WATCHDOG=1", wait=False)

    def run(self) -> int:
        """Run until a signal; returns the exit code."""
        with self.resources:
            try:
                code = self._run()
            finally:
                notify("STOPPING=1")
        if code == EX_OK:
            self.log.info("stopped")
        return code

    def _run(self) -> int:
        try:
            self._catch_signals()
            self._serve_metrics()
            self.setup()
            if not self.stopping:
                self.log.info("ready", version=__version__, config=str(self.config_path))
                notify("READY=1")
            while not self.stopping:
                if self._reload_requested:
                    self._reload()
                with self.metrics.turn.time():
                    self.run_once()
                self.feed_watchdog()
        except FedsimError as error:
            self.log.error("failed", problem=str(error))  # noqa: TRY400
            return error.exit_code
        except OSError as error:
            # The disk cannot be used: nothing is lost, and the next start continues from what is stored there.
            where = f" ({error.filename})" if error.filename else ""
            self.log.exception("failed", problem=f"{error.strerror or error}{where}: check this host's disk")
            return EX_UNAVAILABLE
        return EX_OK

    def _catch_signals(self) -> None:
        self.wake_fd, wake_write = socket.socketpair()
        for end in (self.wake_fd, wake_write):
            self.resources.enter_context(end).setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        self.resources.callback(signal.set_wakeup_fd, -1)
        faulthandler.enable()  # so that the watchdog's SIGABRT prints where the loop was

    def _on_signal(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:
            self._reload_requested = True
        else:
            self.stopping = True

    def _reload(self) -> None:
        self._reload_requested = False
        notify_reloading()
        try:
            self.reload(reload_config(self.config_path, self.config, self.fixed_keys))
            self.log.info("reloaded", config=str(self.config_path))
        except ConfigError as error:
            self.log.error("reload_failed", problem=str(error))  # noqa: TRY400 - the message is complete
        notify("READY=1")

    def _serve_metrics(self) -> None:
        if self.config.metrics is not None:
            endpoint = MetricsEndpoint(self.config.metrics, self.metrics.registry)
            self.resources.callback(endpoint.close)
            where = self.config.metrics.model_copy(update={"port": endpoint.port})
            self.log.info("metrics_served", address=f"http://{where}/metrics")


def command_line(
    name: str,
    what_it_does: str,
    model: type[Model],
    run: Callable[[Model, Path], int],
    log_fields: Callable[[Model], dict[str, Any]] = lambda _: {},
    commands: Sequence[click.Command] = (),
) -> Callable[..., int]:
    """The main function of a daemon: --config, --validate-config, --verbose; or one of its further commands.

    Args:
        name: of the daemon; its command is `fedsim-NAME`, its file NAME.yml.
        what_it_does: for `--help`.
        model: of the file.
        run: runs the daemon with a valid configuration (from this file); returns the exit code.
        log_fields: default fields of every event, for such a configuration.
        commands: that ask a running daemon; they find the path of the file under `CONFIG_PATH` in their context's meta.
    """
    program = click.group(invoke_without_command=True, epilog=EPILOG) if commands else click.command()

    @program
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
    @click.pass_context
    def command(context: click.Context, path: Path, *, validate_config: bool, verbose: bool) -> int:
        context.meta[CONFIG_PATH] = path
        if context.invoked_subcommand is not None:
            return EX_OK
        config = load_config(path, model)
        if validate_config:
            click.echo(f"{path} is valid.")
            return EX_OK
        configure_logging(verbose=verbose, identifier=f"fedsim-{name}", **log_fields(config))
        return run(config, path)

    command.help = what_it_does
    if isinstance(command, click.Group):
        for other in commands:
            command.add_command(other)
    return partial(run_command, command, f"fedsim-{name}", result_is_printed=False)


def daemon_main(daemon: type[Daemon[Config]], commands: Sequence[click.Command] = ()) -> int:
    """Run a daemon, or one of its further commands, by its command line; returns the exit code."""
    what_it_does = (daemon.__doc__ or "").strip()
    return command_line(
        daemon.name,
        what_it_does,
        daemon.config_model,
        lambda config, path: daemon(config, path).run(),
        daemon.log_fields,
        commands,
    )()
