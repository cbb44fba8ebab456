"""The version of the database's schema, and its migration to that of the code (Alembic, without an alembic.ini).

A script's name begins with its version, `v0008_…`, so that only a migration loads the scripts, and Alembic itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.engine import URL

from fedsim.errors import Unavailable
from fedsim.store.connections import LOCK_WAIT_SECONDS, Database, make_engine, reporting_errors, shown

MIGRATIONS = Path(__file__).parent / "migrations"


@cache
def _versions(migrations: Path) -> tuple[str, ...]:
    """All versions of the scripts in this folder, newest first."""
    names = (path.name for path in (migrations / "versions").glob("v*.py"))
    return tuple(sorted((name[1:].partition("_")[0] for name in names), reverse=True))


def check_schema(database: Database) -> None:
    """Connect and compare the schema's version with the code's.

    Raises:
        Unavailable: the database does not answer, or its schema is missing, older or newer; the text says what to do.
    """
    with database.reading() as connection:
        _compare(connection, shown(database.url), allow_older=False)


def migrate_schema(url: URL, password_file: Path | None) -> None:
    """Migrate the schema to the code's version, if it is older. Daemons may call it concurrently.

    Raises:
        Unavailable: the database does not answer, or its schema is newer than this code.
    """
    with _changing_schema(url, password_file) as connection:
        if not _compare(connection, shown(url), allow_older=True):
            _migrate(connection)


def _migrate(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415 - a tenth of a daemon's start, and most starts migrate nothing
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _compare(connection: Connection, place: str, *, allow_older: bool) -> bool:
    """Whether the schema has the code's version; raises `Unavailable` if it must not be used."""
    known = _versions(MIGRATIONS)
    current = known[0]
    versioned = inspect(connection).has_table("alembic_version")
    found = connection.scalar(text("SELECT version_num FROM alembic_version")) if versioned else None
    if found is not None and found not in known:
        raise Unavailable(
            f"The database {place} was created by a newer fedsim (schema {found}; this one supports {current}): "
            "install that version on this host, too"
        )
    if found != current and not allow_older:
        state = "has no fedsim tables yet" if found is None else f"has schema {found}, older than {current}"
        raise Unavailable(f"The database {place} {state}: start fedsim-server, which migrates it")
    return found == current


@contextmanager
def _changing_schema(url: URL, password_file: Path | None) -> Iterator[Connection]:
    """Provide the only connection of all processes that may change the schema, in a transaction."""
    change = _changing_sqlite if url.get_backend_name() == "sqlite" else _changing_mysql
    engine = make_engine(url, password_file, migrating=True)
    with reporting_errors(url), change(engine, str(url.database)) as connection:
        yield connection


@contextmanager
def _changing_sqlite(engine: Engine, database: str) -> Iterator[Connection]:
    path = Path(database)
    with _only_one_in(path.parent):
        _create_private(path)
        with engine.connect() as connection:
            _use_write_ahead_log(connection)
            # The whole migration is one transaction: a process that is killed has changed nothing.
            with connection.execution_options(writes=True).begin():
                yield connection
                _check_references(connection, path)


@contextmanager
def _changing_mysql(engine: Engine, database: str) -> Iterator[Connection]:
    with engine.connect() as connection, _named_lock(connection, database), connection.begin():
        yield connection


@contextmanager
def _only_one_in(folder: Path) -> Iterator[None]:
    """Lock the folder, so that only one process migrates a database in it; the lock ends with the process."""
    try:
        # The folder is locked, because closing the file itself would release the locks that SQLite has on it.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(
            f"The database's folder {folder} cannot be used: {error.strerror}; create it, writable by this user"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create_private(path: Path) -> None:
    """Create the file for owner and group only: it contains password hashes. SQLite's log gets the same mode."""
    if path.exists():
        return
    try:
        path.touch(mode=0o660)
    except OSError as error:
        raise Unavailable(
            f"The database {path} cannot be created: {error.strerror}; allow this user to write to its folder"
        ) from error


def _use_write_ahead_log(connection: Connection) -> None:
    """Let readers continue during a write; stored in the file. Not in a transaction, and not concurrently."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, sqlite3.Connection):
        raise TypeError(f"{driver!r} is not the standard library's connection")
    driver.execute("PRAGMA journal_mode = WAL")


def _check_references(connection: Connection, path: Path) -> None:
    """Check the foreign keys before the change is committed, as they are off while tables are rebuilt."""
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        raise Unavailable(
            f"The database {path} was not migrated: {len(broken)} rows would refer to missing rows, the first in table "
            f"{broken[0][0]}; restore a backup or repair it"
        )


@contextmanager
def _named_lock(connection: Connection, database: str) -> Iterator[None]:
    """Hold a named lock: in MySQL a schema change commits the transaction and releases its row locks."""
    name = "fedsim." + hashlib.sha256(database.encode()).hexdigest()[:32]
    got = connection.scalar(text("SELECT GET_LOCK(:name, :seconds)"), {"name": name, "seconds": LOCK_WAIT_SECONDS * 6})
    connection.commit()
    if got != 1:
        raise Unavailable(f"The database {database} is being migrated by another process: try again")
    try:
        yield
    finally:
        connection.scalar(text("SELECT RELEASE_LOCK(:name)"), {"name": name})
        connection.commit()
