"""The store when the database is unreachable, returns, changes its password, or denies access."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING
from uuid import uuid4

import pymysql
import pytest
from sqlalchemy import text

from fedsim.errors import Unavailable
from fedsim.store import connections, open_store
from fedsim.store.records import UserRole, UserState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from database_support import MariaDb, Place

    from fedsim.store import Store


def add_user(store: Store, name: str) -> None:
    store.users.create(name, "hash", role=UserRole.USER, state=UserState.ACTIVE, language="en", now=1.0)


@pytest.mark.mariadb
class TestMariaDb:
    @pytest.fixture
    def place(self, migrated_mariadb: Place) -> Place:
        return migrated_mariadb

    def test_the_next_call_works_after_the_database_was_killed_and_restarted(
        self, mariadb: MariaDb, place: Place
    ) -> None:
        store = place.open()
        before = store.users.all()
        mariadb.kill()
        try:
            with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{mariadb.port} cannot be used: .*start it"):
                store.users.all()
        finally:
            mariadb.start()
        assert store.users.all() == before
        store.close()

    def test_a_connection_that_the_database_closed_is_replaced_unseen(self, mariadb: MariaDb, place: Place) -> None:
        store = place.open()
        with store.database.reading() as connection:
            number = connection.scalar(text("SELECT CONNECTION_ID()"))
        mariadb.execute(f"KILL {number}")
        add_user(store, f"Ada {number}")
        with store.database.reading() as connection:
            assert connection.scalar(text("SELECT CONNECTION_ID()")) != number
        store.close()

    def test_a_connection_lost_in_the_middle_leaves_nothing(self, mariadb: MariaDb, place: Place) -> None:
        store = place.open()

        def write_and_lose_it() -> None:
            with store.database.writing() as connection:
                connection.execute(text("INSERT INTO nodes (name, seen_at, hello) VALUES ('lost', 1, '{}')"))
                mariadb.execute(f"KILL {connection.scalar(text('SELECT CONNECTION_ID()'))}")

        with pytest.raises(Unavailable):
            write_and_lose_it()
        assert "lost" not in {node.name for node in store.nodes.all()}
        store.close()

    def test_a_wrong_password_is_said_but_never_shown(self, mariadb: MariaDb, place: Place, tmp_path: Path) -> None:
        wrong = tmp_path / "password"
        wrong.write_text("not-the-password", encoding="utf-8")
        with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{mariadb.port}.*database_password_file") as caught:
            open_store(place.url, wrong).check()
        shown = "".join(traceback.format_exception(caught.value))
        assert "not-the-password" not in shown
        with pytest.raises(Unavailable, match=r"Access denied.*database_password_file"):
            open_store(place.url).check()

    def test_the_password_stands_in_nothing_that_could_be_logged(self, mariadb: MariaDb, place: Place) -> None:
        store = place.open()
        store.check()
        database = store.database
        url = database.url.render_as_string(hide_password=False)
        assert mariadb.password not in f"{store!r} {vars(store)!r} {vars(database)!r} {url}"
        store.close()

    def test_a_changed_password_needs_no_restart(self, mariadb: MariaDb, place: Place, tmp_path: Path) -> None:
        file = tmp_path / "password"
        for password in ("first", "second ü"):
            mariadb.execute(f"CREATE OR REPLACE USER 'other'@'127.0.0.1' IDENTIFIED BY '{password}'")
            mariadb.execute("GRANT ALL ON *.* TO 'other'@'127.0.0.1'")
            file.write_text(f"{password}\n", encoding="utf-8")
            if password == "first":
                store = open_store(place.url.replace("fedsim@", "other@"), file)
            else:
                store.close()
            store.check()
        file.unlink()
        store.close()
        with pytest.raises(Unavailable, match=f"cannot be read from {file}"):
            store.check()

    def test_a_database_that_was_not_made_yet_is_named(self, mariadb: MariaDb) -> None:
        with pytest.raises(Unavailable, match=r"nowhere at fedsim@127.0.0.1:\d+ cannot be used: .*; create it"):
            open_store(mariadb.url("nowhere"), mariadb.password_file).check()

    @pytest.mark.parametrize("scheme", ["mysql", "mariadb"])
    def test_the_driver_need_not_be_named(self, mariadb: MariaDb, place: Place, scheme: str) -> None:
        store = open_store(place.url.replace("mysql+pymysql", scheme), mariadb.password_file)
        store.check()
        store.close()

    def test_tables_keep_case_and_every_character(self, place: Place, mariadb: MariaDb) -> None:
        name = place.url.rsplit("/", 1)[1]
        with mariadb.connect() as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT DISTINCT engine, table_collation FROM information_schema.tables "
                "WHERE table_schema = %s AND table_name <> 'alembic_version'",
                (name,),
            )
            assert cursor.fetchall() == (("InnoDB", "utf8mb4_bin"),)

    def test_a_locked_row_is_waited_for_and_then_reported(
        self, place: Place, mariadb: MariaDb, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connections, "LOCK_WAIT_SECONDS", 1)
        store = place.open()
        add_user(store, "Held")
        user = store.users.by_name("held")
        assert user is not None
        with mariadb.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"USE {place.url.rsplit('/', 1)[1]}")
            cursor.execute("BEGIN")
            cursor.execute("UPDATE users SET language = 'zh' WHERE id = %s", (user.id,))
            with pytest.raises(Unavailable, match="another process holds a row, try again"):
                store.users.set_language(user.id, "de")
        store.users.set_language(user.id, "de")
        store.close()


def test_an_absent_database_is_said_with_its_address_and_without_the_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("the-password", encoding="utf-8")
    store = open_store("mysql+pymysql://fedsim@127.0.0.1:1/fedsim", file)
    for question in (store.check, store.migrate, store.users.all):
        with pytest.raises(Unavailable, match=r"fedsim at fedsim@127\.0\.0\.1:1 cannot be used: .*start it") as caught:
            question()
        assert "the-password" not in "".join(traceback.format_exception(caught.value))
        assert isinstance(caught.value.__cause__.__cause__, pymysql.err.OperationalError)  # type: ignore[union-attr]


class TestSqlite:
    def test_a_writer_that_holds_the_file_is_waited_for_and_then_said(
        self, tmp_path: Path, sqlite_store: Callable[[Path], Store], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = sqlite_store(tmp_path / "fedsim.db")
        store.migrate()
        monkeypatch.setattr(connections, "LOCK_WAIT_SECONDS", 0.05)
        other = sqlite_store(tmp_path / "fedsim.db")
        with store.database.writing():
            assert other.users.all() == []  # readers never wait
            with pytest.raises(Unavailable, match="locked; another process holds it, try again"):
                add_user(other, "Ada")
        add_user(other, "Ada")

    def test_an_error_shows_no_values(self, tmp_path: Path, sqlite_store: Callable[[Path], Store]) -> None:
        (tmp_path / "fedsim.db").touch()
        store = sqlite_store(tmp_path / "fedsim.db")
        secret = uuid4().hex
        with pytest.raises(Unavailable, match="no such table") as caught:
            store.users.set_password_hash(1, secret)
        assert secret not in "".join(traceback.format_exception(caught.value))

    def test_every_connection_keeps_references_and_syncs(
        self, tmp_path: Path, sqlite_store: Callable[[Path], Store]
    ) -> None:
        store = sqlite_store(tmp_path / "fedsim.db")
        store.migrate()
        with store.database.reading() as first, store.database.reading() as second:
            for connection in (first, second):
                found = [
                    connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                    for name in ("foreign_keys", "synchronous", "journal_mode")
                ]
                assert found == [1, 2, "wal"]

    def test_an_error_in_a_transaction_leaves_nothing(
        self, tmp_path: Path, sqlite_store: Callable[[Path], Store]
    ) -> None:
        store = sqlite_store(tmp_path / "fedsim.db")
        store.migrate()

        def write_and_fail() -> None:
            with store.database.writing() as connection:
                connection.execute(text("INSERT INTO nodes (name, seen_at, hello) VALUES ('lost', 1, '{}')"))
                raise KeyError

        with pytest.raises(KeyError):
            write_and_fail()
        assert store.nodes.all() == []
