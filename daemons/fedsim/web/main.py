"""`fedsim-web`: bind the address, wait for the database, and serve the application under gunicorn."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from contextlib import ExitStack, closing
from pathlib import Path

from fedsim.activation import passed_sockets
from fedsim.config import Address, WebConfig
from fedsim.errors import EX_OK, FedsimError, Unavailable
from fedsim.log import get_logger
from fedsim.runtime.daemon import command_line
from fedsim.runtime.systemd import extend_timeout, notify
from fedsim.store import open_store
from fedsim.store.availability import DatabaseCheck
from fedsim.web.gunicorn_app.application import GunicornApplication, load_credentials

BACKLOG = 256
DATABASE_RETRY_SECONDS = 2.0


def bind(address: Address) -> socket.socket:
    """The listening socket.

    Raises:
        Unavailable: naming the address, if it is in use or does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in address.address else socket.AF_INET
    try:
        return socket.create_server((address.address, address.port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Unavailable(
                f"{address} is in use: stop the process that listens there, or change `listen` in web.yml"
            ) from error
        raise Unavailable(f"cannot listen on {address}: {error.strerror}; see `listen` in web.yml") from error


def wait_for_database(config: WebConfig, stopping: threading.Event) -> None:
    """Wait until the database answers and has the right schema, or until `stopping`; the reason is reported."""
    with closing(open_store(config.database, config.database_password_file)) as store:
        check = DatabaseCheck(store, migrate=False)
        while not stopping.is_set():
            try:
                check.require()
            except Unavailable as error:
                notify(f"STATUS={error}")
                extend_timeout()
                stopping.wait(DATABASE_RETRY_SECONDS)
            else:
                return


def serve(config: WebConfig, path: Path) -> int:
    """Bind, wait for the database, serve until SIGTERM.

    Raises:
        Unavailable: the address cannot be bound.
        ConfigError: a certificate or the database's address cannot be used.
    """
    load_credentials(config)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the wait ends with reading the configuration anyway
    with ExitStack() as stack:
        passed = passed_sockets(config.listen, plain=not config.insecure_plaintext)
        listeners = [stack.enter_context(listener) for listener in passed or [bind(config.listen)]]
        wait_for_database(config, stopping)
        if not stopping.is_set():
            GunicornApplication(config, path, listeners).run()
    return EX_OK


def run(config: WebConfig, path: Path) -> int:
    """Serve, and log the outcome; returns the exit code."""
    supervisor = os.getpid()
    try:
        return serve(config, path)
    except FedsimError as error:
        get_logger().error("failed", problem=str(error))
        return error.exit_code
    finally:
        if os.getpid() == supervisor:  # gunicorn's worker process passes through here as well
            get_logger().info("stopped")


main = command_line("web", "Serve the pages and the JSON API.", WebConfig, run)
