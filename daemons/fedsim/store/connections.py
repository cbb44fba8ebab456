"""Connections to the database: opening them, pooling them, replacing them after a fork, and reporting their errors.

Everything that differs between the two databases is in this module; the other modules use the same SQL on both.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, Table, create_engine, event, exc, func
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from fedsim.config.secrets import find_secret
from fedsim.errors import Unavailable

# Longer than any statement of fedsim takes, shorter than a daemon's watchdog.
LOCK_WAIT_SECONDS = 10
CONNECT_SECONDS = 5
ANSWER_SECONDS = 20

_MIGRATE = "start fedsim-server, which brings its tables up to date"
# By the driver's error number (SQLite's are below 100, MySQL's above 1000), else by the kind of database.
_WHAT_TO_DO: dict[Any, str] = {
    sqlite3.SQLITE_ERROR: _MIGRATE,
    sqlite3.SQLITE_BUSY: "another process holds it, try again",
    sqlite3.SQLITE_CANTOPEN: "start fedsim-server, which creates it, and check that this user can read file and folder",
    sqlite3.SQLITE_CORRUPT: "restore a backup",
    sqlite3.SQLITE_NOTADB: "use another file, or restore a backup",
    sqlite3.SQLITE_FULL: "free space on its disk",
    sqlite3.SQLITE_READONLY: "allow this user to write to it and its folder",
    1044: "grant this user access to it",
    1045: "check the user in `database` and the password in `database_password_file`",
    1049: "create it",
    1054: _MIGRATE,
    1142: "run `fedsim admin migrate` with an account that may change its tables, or grant this one what it needs",
    1146: _MIGRATE,
    1205: "another process holds a row, try again",
    1213: "try again",
    "sqlite": "check its disk",
    "mysql": "start it, or correct the address in `database`",
}


def make_engine(url: URL, password_file: Path | None, *, migrating: bool = False) -> Engine:
    """Create an engine for a parsed `url`; `migrating`: for the connection that changes the schema."""
    engine = _sqlite_engine(url, migrating) if url.get_backend_name() == "sqlite" else _mysql_engine(url, migrating)

    if password_file is not None:

        @event.listens_for(engine, "do_connect")
        def _give_password(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
            # Read for each connection: it is never part of a URL or a log, and a new password needs no restart.
            try:
                parameters["password"] = find_secret(password_file).read_bytes().rstrip(b"\r\n")
            except OSError as error:
                raise Unavailable(
                    f"The database's password cannot be read from {password_file}: {error.strerror}"
                ) from error

    return engine


def _sqlite_engine(url: URL, migrating: bool) -> Engine:
    # Only a migration creates the file, with the right mode: "rw" opens an existing one.
    file = f"file:{quote(str(url.database))}?mode=rw"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(file, uri=True, timeout=LOCK_WAIT_SECONDS, check_same_thread=False)

    pool: dict[str, Any] = {"poolclass": NullPool} if migrating else {"max_overflow": -1}
    engine = create_engine(url, creator=connect, hide_parameters=True, **pool)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions late, and never for a SELECT
        # FULL: a confirmed submission survives a power failure. Migrations rebuild tables, which must not cascade.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA foreign_keys = {'OFF' if migrating else 'ON'}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first fails at its first write if another one wrote in between: writers declare it.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _mysql_engine(url: URL, migrating: bool) -> Engine:
    arguments = {
        "charset": "utf8mb4",
        "connect_timeout": CONNECT_SECONDS,
        "sql_mode": "TRADITIONAL",  # text that is too long is an error, instead of being truncated
        "init_command": f"SET SESSION innodb_lock_wait_timeout = {LOCK_WAIT_SECONDS}",
    }
    if migrating:
        return create_engine(url, connect_args=arguments, poolclass=NullPool, hide_parameters=True)
    # A lost host must not block a thread indefinitely. The web's threads bound the number of connections.
    arguments |= {"read_timeout": ANSWER_SECONDS, "write_timeout": ANSWER_SECONDS}
    return create_engine(
        url,
        connect_args=arguments,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        max_overflow=-1,
        hide_parameters=True,
    )


@contextmanager
def reporting_errors(url: URL) -> Iterator[None]:
    """Turn the driver's errors for a database that does not work into `Unavailable`.

    Errors that only a programming error can cause (an invalid statement, a violated constraint) are raised unchanged.
    """
    try:
        yield
    except exc.DBAPIError as error:
        code = _error_number(error.orig)
        ours = isinstance(error, exc.IntegrityError | exc.ProgrammingError | exc.DataError | exc.NotSupportedError)
        if ours and code not in _WHAT_TO_DO:
            raise
        # Only the driver's message: SQLAlchemy's includes the statement and its values, such as password hashes.
        words = error.orig.args[-1] if error.orig is not None and error.orig.args else None
        reason = words or "the connection was lost"
        advice = _WHAT_TO_DO.get(code, _WHAT_TO_DO[url.get_backend_name()])
        raise Unavailable(f"The database {shown(url)} cannot be used: {reason}; {advice}") from error


def _error_number(error: BaseException | None) -> int | None:
    if isinstance(error, sqlite3.Error):
        extended: int | None = getattr(error, "sqlite_errorcode", None)
        return None if extended is None else extended & 0xFF
    number = error.args[0] if error is not None and error.args else None
    return number if isinstance(number, int) else None


def shown(url: URL) -> str:
    """The address for messages, without driver and options; it never contains a password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    user = f"{url.username}@" if url.username else ""
    host = url.query.get("unix_socket") or f"{url.host or 'localhost'}:{url.port or 3306}"
    return f"{url.database} at {user}{host}"


class Database:
    """A database with its pool of connections, used in transactions. Safe with threads and after a fork."""

    def __init__(self, url: URL, password_file: Path | None) -> None:
        self.url = url
        self.password_file = password_file
        self._engine = make_engine(url, password_file)
        self._writer = self._engine.execution_options(writes=True)
        _open.add(self)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads; raises `Unavailable`."""
        with reporting_errors(self.url), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed at its end, or rolled back if it raises; raises `Unavailable`."""
        with reporting_errors(self.url), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def discard_pool(self) -> None:
        """In a child process: start with an empty pool; the connections belong to the parent."""
        self._engine.dispose(close=False)


def upsert(
    connection: Connection,
    table: Table,
    key: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    keep: tuple[str, ...] = (),
) -> None:
    """Insert the row, or overwrite the one with this primary `key`; None does not overwrite the columns in `keep`."""
    row = {**key, **values}

    def updates(new: Any) -> dict[str, Any]:
        return {name: func.coalesce(new[name], table.c[name]) if name in keep else new[name] for name in values}

    if connection.dialect.name == "sqlite":
        into_sqlite = sqlite.insert(table).values(row)
        connection.execute(
            into_sqlite.on_conflict_do_update(index_elements=list(key), set_=updates(into_sqlite.excluded))
        )
    else:
        into_mysql = mysql.insert(table).values(row)
        connection.execute(into_mysql.on_duplicate_key_update(updates(into_mysql.inserted)))


# SQLite's connections must not even be closed in a child: idle ones are closed before the fork, pools replaced after.
_open: weakref.WeakSet[Database] = weakref.WeakSet()


def _before_fork() -> None:
    for database in list(_open):
        database.close()


def _in_child() -> None:
    for database in list(_open):
        database.discard_pool()


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
