"""The application as gunicorn loads it: our settings, and a reload that keeps serving if the new ones are wrong."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

from fedsim import __version__
from fedsim.config import Address, WebConfig
from fedsim.errors import ConfigError
from fedsim.log import get_logger
from fedsim.runtime import daemon
from fedsim.runtime.systemd import notify
from fedsim.spool.files import Role
from fedsim.store import Store, open_store
from fedsim.web.app import make_app
from fedsim.web.gunicorn_app.supervisor import EventLogger, Supervisor
from fedsim.web.gunicorn_app.worker import BufferingWorker
from fedsim.web.http_request import MAX_BODY_BYTES
from fedsim.web.metrics import MeasuredApp
from fedsim.web.notifier import WireNotifier
from fedsim.wire import Identity
from fedsim.wire.tls import Credentials

# A worker that does not answer its supervisor for this long is killed and replaced.
WORKER_TIMEOUT_SECONDS = 60
GRACEFUL_SECONDS = 10
KEEP_ALIVE_SECONDS = 15
# Each may hold a socket and the file that it downloads: well below the usual limit of 1,024 descriptors.
MAX_CONNECTIONS = 400
# What a reload cannot change.
FIXED = ("listen", "insecure_plaintext")


def load_credentials(config: WebConfig) -> Credentials | None:
    """The certificate presented to the server's receiver; raises `ConfigError` if it cannot be used."""
    return Credentials.of(config.tls, Identity(config.name, Role.WEB))


class GunicornApplication(BaseApplication):  # type: ignore[misc] # gunicorn has no types
    """gunicorn with our settings on sockets that are bound already. One worker: its threads are enough for a lab."""

    def __init__(self, config: WebConfig, path: Path, listeners: list[socket.socket]) -> None:
        self._config = config
        self._path = path
        self._credentials = load_credentials(config)
        address, port, *_ = listeners[0].getsockname()
        self._address = Address(address=address, port=port)
        # gunicorn creates its own sockets from these descriptors and closes them.
        self._descriptors = [listener.detach() for listener in listeners]
        self._store: Store | None = None
        self._notifier: WireNotifier | None = None
        super().__init__()

    def load_config(self) -> None:
        """Our settings, instead of gunicorn's command line and files."""
        # Read by the worker.
        self.request_seconds = self._config.request_timeout_seconds
        self.min_bytes_per_second = self._config.min_bytes_per_second
        self.max_body_bytes = MAX_BODY_BYTES
        settings: dict[str, Any] = {
            "bind": [f"fd://{descriptor}" for descriptor in self._descriptors],
            "worker_class": BufferingWorker,
            "workers": 1,
            "threads": self._config.threads,
            "worker_connections": MAX_CONNECTIONS,
            "timeout": WORKER_TIMEOUT_SECONDS,
            "graceful_timeout": GRACEFUL_SECONDS,
            "keepalive": KEEP_ALIVE_SECONDS,
            "loglevel": "warning",
            "logger_class": EventLogger,
            "proc_name": "fedsim-web",
            "forwarded_allow_ips": "",  # `HttpRequest` decides when to trust a proxy
            "control_socket_disable": True,
            "worker_exit": lambda _, worker: worker.app.close(),
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> MeasuredApp:
        """The application. Called in the worker, so that no connection and no thread crosses a fork."""
        self._store = open_store(self._config.database, self._config.database_password_file)
        self._notifier = WireNotifier(self._config, self._credentials)
        return MeasuredApp(make_app(self._config, self._store, self._notifier), self._config)

    def reload_config(self) -> bool:
        """Read the configuration again for the next worker process; False if it cannot be used."""
        try:
            config = daemon.reload_config(self._path, self._config, FIXED)
            credentials = load_credentials(config)
            open_store(config.database, config.database_password_file).close()
        except ConfigError as error:
            get_logger().error("reload_failed", problem=str(error))
            return False
        self._config = config
        self._credentials = credentials
        get_logger().info("reloaded", config=str(self._path))
        return True

    def run(self) -> None:
        """Serve until a signal arrives."""
        Supervisor(self).run()

    def close(self) -> None:
        """Close what `load` opened."""
        if self._notifier is not None:
            self._notifier.close()
        if self._store is not None:
            self._store.close()

    def report_ready(self) -> None:
        """Report that requests are answered: after the start, and again after a reload."""
        get_logger().info("ready", version=__version__, address=f"http://{self._address}")
        notify("READY=1", f"STATUS=Serving http://{self._address}")
