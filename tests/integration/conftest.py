"""Databases for integration tests: a real MariaDB, started on first use, and stores on both kinds of database."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import pytest
from argon2 import PasswordHasher
from database_support import MariaDb, Place, program
from presence import missing
from sqlalchemy import delete

from fedsim.store import Store, open_store
from fedsim.store.schema import metadata
from fedsim.web import passwords


@pytest.fixture(scope="module", autouse=True)
def cheap_password_hashes() -> Iterator[None]:
    """Hashes of passwords in the tests' own process take no time; what they cost is a matter of the unit tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
        yield


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDb]:
    """A running MariaDB; a test that kills it starts it again."""
    if program("mariadbd") is None or program("mariadb-install-db") is None:
        missing("MariaDB's server is not installed: apt-get install mariadb-server")
    with tempfile.TemporaryDirectory(prefix="fedsim-mariadb-") as folder:
        server = MariaDb(Path(folder), password=f"päss{uuid4().hex}")
        server.install()
        try:
            server.start()
            yield server
        finally:
            server.kill()


BOTH = ["sqlite", pytest.param("mariadb", marks=pytest.mark.mariadb)]


@pytest.fixture(params=BOTH)
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A database without tables; the test runs once on each kind."""
    if request.param == "sqlite":
        return Place(f"sqlite:///{tmp_path / 'fedsim.db'}", None)
    server: MariaDb = request.getfixturevalue("mariadb")
    return Place(server.url(server.new_database()), server.password_file)


@pytest.fixture(scope="session")
def migrated_mariadb(mariadb: MariaDb) -> Place:
    """A database with all tables; making them takes MariaDB longer than a test."""
    place = Place(mariadb.url(mariadb.new_database()), mariadb.password_file)
    store = place.open()
    store.migrate()
    store.close()
    return place


@pytest.fixture(params=BOTH)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A database with all tables and no rows; the test runs once on each kind."""
    if request.param == "sqlite":
        place = Place(f"sqlite:///{tmp_path / 'fedsim.db'}", None)
        store = place.open()
        store.migrate()
    else:
        place = request.getfixturevalue("migrated_mariadb")
        store = place.open()
        with store.database.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(delete(table))
    store.close()
    return place


@pytest.fixture
def store(database: Place) -> Iterator[Store]:
    """An empty store, on each kind of database."""
    store = database.open()
    yield store
    store.close()


@pytest.fixture
def sqlite_store() -> Iterator[Callable[[Path], Store]]:
    """Opens stores on SQLite files, and closes them at the end of the test."""
    with ExitStack() as stack:

        def open_file(path: Path) -> Store:
            store = open_store(f"sqlite:///{quote(str(path))}")
            stack.callback(store.close)
            return store

        yield open_file
