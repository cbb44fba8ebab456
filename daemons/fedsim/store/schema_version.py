"""Which version the database's tables have, and how they come to the code's (Alembic, without an alembic.ini)."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from fedsim.errors import Unavailable
from fedsim.store.engine import LOCK_WAIT_SECONDS, Database, make_engine, shown, told_plainly

MIGRATIONS = Path(__file__).parent / "migrations"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


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
                config = _config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    def _compare(self, connection: Connection, *, allow_older: bool) -> bool:
        """Whether the schema is the code's; what must not go on raises."""
        scripts = ScriptDirectory.from_config(_config())
        known = [script.revision for script in scripts.walk_revisions()]
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
        sqlite_file = Path(str(self.url.database)) if self.url.get_backend_name() == "sqlite" else None
        if sqlite_file is not None:
            _create_private(sqlite_file)
        engine = make_engine(self.url, self.password_file, migrating=True)
        with told_plainly(self.url), engine.connect() as connection:
            if sqlite_file is not None:
                # The write transaction is the lock, and holds the whole change: killed half-way, nothing has happened.
                _use_write_ahead_log(connection)
                with connection.execution_options(writes=True).begin():
                    yield connection
                    _check_references(connection, sqlite_file)
            else:
                with _named_lock(connection, str(self.url.database)), connection.begin():
                    yield connection


def _create_private(path: Path) -> None:
    """Password hashes lie in the file: it is its owner's and group's alone. The log beside it takes over its mode."""
    try:
        path.touch(mode=0o660, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"The database {path} cannot be made: {error.strerror}; make its folder, writable by this user"
        ) from error


def _use_write_ahead_log(connection: Connection) -> None:
    """Readers do not wait for the writer; the file remembers it. Not possible inside a transaction."""
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
