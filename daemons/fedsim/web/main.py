"""`fedsim-web`: the application under gunicorn, which supervises its worker as our daemons supervise theirs."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

from fedsim import __version__
from fedsim.activation import passed_sockets
from fedsim.config import Address, WebConfig
from fedsim.errors import EX_OK, ConfigError, FedsimError, Unavailable
from fedsim.log import get_logger
from fedsim.runtime.daemon import command_line, reload_config
from fedsim.runtime.systemd import extend_timeout, notify
from fedsim.spool.files import Role
from fedsim.store import Store, open_store
from fedsim.web.app import make_app
from fedsim.web.metrics import MeasuredApp
from fedsim.web.notifier import WireSignal
from fedsim.web.request import MAX_BODY_BYTES
from fedsim.web.supervisor import EventLogger, Supervisor
from fedsim.web.worker import PatientWorker
from fedsim.wire import Identity
from fedsim.wire.tls import Credentials

# A worker that does not answer its supervisor for so long is killed and replaced.
WORKER_TIMEOUT_SECONDS = 60
GRACEFUL_SECONDS = 10
KEEP_ALIVE_SECONDS = 15
BACKLOG = 256
# Each may hold a socket and the file that it downloads: well below the usual limit of 1,024 descriptors.
MAX_CONNECTIONS = 400
DATABASE_RETRY_SECONDS = 2.0
# What a reload cannot change.
FIXED = ("listen", "insecure_plaintext")


class _Gunicorn(BaseApplication):  # type: ignore[misc] # gunicorn has no types
    """gunicorn with our settings on a socket that is bound already. One worker: threads serve a lab well."""

    def __init__(self, config: WebConfig, path: Path, listeners: list[socket.socket]) -> None:
        self._config = config
        self._path = path
        self._credentials = read_credentials(config)
        address, port, *_ = listeners[0].getsockname()
        self._where = Address(address=address, port=port)
        # gunicorn makes its own sockets of them and closes these.
        self._descriptors = [listener.detach() for listener in listeners]
        self._store: Store | None = None
        self._signal: WireSignal | None = None
        super().__init__()

    def load_config(self) -> None:
        """Our settings, instead of gunicorn's command line and files."""
        # What the worker asks for.
        self.request_seconds = self._config.request_timeout_seconds
        self.min_bytes_per_second = self._config.min_bytes_per_second
        self.max_body_bytes = MAX_BODY_BYTES
        settings: dict[str, Any] = {
            "bind": [f"fd://{descriptor}" for descriptor in self._descriptors],
            "worker_class": PatientWorker,
            "workers": 1,
            "threads": self._config.threads,
            "worker_connections": MAX_CONNECTIONS,
            "timeout": WORKER_TIMEOUT_SECONDS,
            "graceful_timeout": GRACEFUL_SECONDS,
            "keepalive": KEEP_ALIVE_SECONDS,
            "loglevel": "warning",
            "logger_class": EventLogger,
            "proc_name": "fedsim-web",
            "forwarded_allow_ips": "",  # the visit itself decides when a proxy is believed
            "control_socket_disable": True,
            "worker_exit": lambda _, worker: worker.app.close(),
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> MeasuredApp:
        """The application. Called in the worker, so that no connection and no thread crosses a fork."""
        self._store = open_store(self._config.database, self._config.database_password_file)
        self._signal = WireSignal(self._config, self._credentials)
        return MeasuredApp(make_app(self._config, self._store, self._signal), self._config)

    def read_again(self) -> bool:
        """Read the file anew, for the process that is to serve from now on; False where it cannot be used."""
        try:
            config = reload_config(self._path, self._config, FIXED)
            credentials = read_credentials(config)
            open_store(config.database, config.database_password_file).close()
        except ConfigError as error:
            get_logger().error("reload_failed", problem=str(error))
            return False
        self._config = config
        self._credentials = credentials
        get_logger().info("reloaded", config=str(self._path))
        return True

    def run(self) -> None:
        """Serve until a signal."""
        Supervisor(self).run()

    def close(self) -> None:
        """Let go of what `load` opened."""
        if self._signal is not None:
            self._signal.close()
        if self._store is not None:
            self._store.close()

    def serves(self) -> None:
        """Requests are answered: from the start on, and again after a reload."""
        get_logger().info("ready", version=__version__, address=f"http://{self._where}")
        notify("READY=1", f"STATUS=Serving http://{self._where}")


def bind(address: Address) -> socket.socket:
    """The listening socket.

    Raises:
        Unavailable: naming the address, if it is in use or not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in address.address else socket.AF_INET
    try:
        return socket.create_server((address.address, address.port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Unavailable(f"{address} is in use: stop what listens there, or change `listen` in web.yml") from error
        raise Unavailable(f"cannot listen on {address}: {error.strerror}; see `listen` in web.yml") from error


def wait_for_database(config: WebConfig, stopping: threading.Event) -> None:
    """Wait until the database answers and has the right schema, and say what is waited for; or until `stopping`."""
    store = open_store(config.database, config.database_password_file)
    said = ""
    try:
        while not stopping.is_set():
            try:
                store.check()
            except Unavailable as error:
                if str(error) != said:
                    said = str(error)
                    get_logger().warning("waiting_for_database", problem=said)
                    notify(f"STATUS=Waiting for the database: {said}")
                extend_timeout()
                stopping.wait(DATABASE_RETRY_SECONDS)
            else:
                return
    finally:
        store.close()


def read_credentials(config: WebConfig) -> Credentials | None:
    """What the web shows to the server's receiver; `ConfigError` if it cannot be used."""
    return Credentials.of(config.tls, Identity(config.name, Role.WEB))


def serve(config: WebConfig, path: Path) -> int:
    """Bind, wait for the database, serve until SIGTERM.

    Raises:
        Unavailable: the address cannot be bound.
        ConfigError: a certificate or the database's address cannot be used.
    """
    read_credentials(config)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the files are read after the wait, as well
    with ExitStack() as until_the_end:
        passed = passed_sockets(config.listen, plain=not config.insecure_plaintext)
        listeners = [until_the_end.enter_context(listener) for listener in passed or [bind(config.listen)]]
        wait_for_database(config, stopping)
        if not stopping.is_set():
            _Gunicorn(config, path, listeners).run()
    return EX_OK


def run(config: WebConfig, path: Path) -> int:
    """Serve, and log how that ended; returns the exit code."""
    supervisor = os.getpid()
    try:
        return serve(config, path)
    except FedsimError as error:
        get_logger().error("failed", problem=str(error))
        return error.exit_code
    finally:
        if os.getpid() == supervisor:  # the process that serves ends through here as well
            get_logger().info("stopped")


main = command_line("web", "Serve the pages and the JSON API.", WebConfig, run)
