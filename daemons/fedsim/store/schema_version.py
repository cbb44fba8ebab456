"""Which version the database's tables have, and how they come to the code's (Alembic, without an alembic.ini)."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from fedsim.errors import Unavailable
from fedsim.store.engine import LOCK_WAIT_SECONDS, Database, make_engine, shown, told_plainly

MIGRATIONS = Path(__file__).parent / "migrations"


@cache
def _versions(migrations: Path) -> tuple[str, ...]:
    """Every version that the scripts in this folder know, newest first; reading them takes a while."""
    return tuple(script.revision for script in ScriptDirectory(str(migrations)).walk_revisions())


class VersionedDatabase(Database):
    """A database that knows which version its tables have."""

    def check(self) -> None:
        """Connect and compare the schema's version with the code's.

        Raises:
            Unavailable: if the database does not answer, or its schema is missing, older or newer; says what to do.
        """
        with self.reading() as connection:
            self._compare(connection, allow_older=False)

    def migrate(self) -> None:
        """Bring the schema to the code's version; nothing happens if it has it. Daemons may call it at the same time.

        Raises:
            Unavailable: if the database does not answer, or its schema is newer than this code.
        """
        with self._changing_schema() as connection:
            if not self._compare(connection, allow_older=True):
                config = Config()
                config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    def _compare(self, connection: Connection, *, allow_older: bool) -> bool:
        """Whether the schema is the code's; what must not go on raises."""
        known = _versions(MIGRATIONS)
        wanted = known[0]
        found = MigrationContext.configure(connection).get_current_revision()
        place = shown(self.url)
        if found is not None and found not in known:
            raise Unavailable(
                f"The database {place} was made by a newer fedsim (schema {found}; this one knows {wanted}): "
                "install that version here as well"
            )
        if found != wanted and not allow_older:
            state = "has no fedsim tables yet" if found is None else f"has schema {found}, older than {wanted}"
            raise Unavailable(f"The database {place} {state}: start fedsim-server, which brings it up to date")
        return found == wanted

    @contextmanager
    def _changing_schema(self) -> Iterator[Connection]:
        """The one connection, of all processes', that may change the schema now; in a transaction."""
        sqlite = self.url.get_backend_name() == "sqlite"
        change = self._changing_sqlite if sqlite else self._changing_mysql
        with told_plainly(self.url), change(make_engine(self.url, self.password_file, migrating=True)) as connection:
            yield connection

    @contextmanager
    def _changing_sqlite(self, engine: Engine) -> Iterator[Connection]:
        path = Path(str(self.url.database))
        with _only_one_in(path.parent):
            _create_private(path)
            with engine.connect() as connection:
                _use_write_ahead_log(connection)
                # The transaction holds the whole change: killed half-way, nothing has happened.
                with connection.execution_options(writes=True).begin():
                    yield connection
                    _check_references(connection, path)

    @contextmanager
    def _changing_mysql(self, engine: Engine) -> Iterator[Connection]:
        with engine.connect() as connection, _named_lock(connection, str(self.url.database)), connection.begin():
            yield connection


@contextmanager
def _only_one_in(folder: Path) -> Iterator[None]:
    """Wait until no other process migrates a database in this folder; its end, however it comes, lets go."""
    try:
        # The folder, because closing the file itself would take away the locks that SQLite has on it.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(
            f"The database's folder {folder} cannot be used: {error.strerror}; make it, writable by this user"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create_private(path: Path) -> None:
    """Password hashes lie in the file: it is its owner's and group's alone. The log beside it takes over its mode."""
    if path.exists():
        return
    try:
        path.touch(mode=0o660)
    except OSError as error:
        raise Unavailable(
            f"The database {path} cannot be made: {error.strerror}; let this user write to its folder"
        ) from error


def _use_write_ahead_log(connection: Connection) -> None:
    """Readers do not wait for the writer; the file remembers it. Not in a transaction, nor by two processes at once."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, sqlite3.Connection):
        raise TypeError(f"{driver!r} is not the standard library's connection")
    driver.execute("PRAGMA journal_mode = WAL")


def _check_references(connection: Connection, path: Path) -> None:
    """Foreign keys are off while tables are rebuilt; before the change becomes real, all must point somewhere."""
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        raise Unavailable(
            f"The database {path} was not migrated: {len(broken)} rows would point nowhere, the first in table "
            f"{broken[0][0]}; restore a backup or repair it"
        )


@contextmanager
def _named_lock(connection: Connection, database: str) -> Iterator[None]:
    """MySQL's changes of a schema end every transaction, so a lock of its own, held by the connection, guards them."""
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
