"""Migration of the schema to the code's version on each kind of database: once, completely, by the first process."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from fedsim.errors import Unavailable
from fedsim.settings import TaskSettings
from fedsim.store import schema_version
from fedsim.store.records import Checkpoint, UserRole, UserState
from fedsim.store.schema import metadata, tasks, users

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from database_support import Place

    from fedsim.store import Store

NEXT = '''
"""A version that rebuilds the table of tasks, as a later release might."""
from alembic import op
from sqlalchemy import Column, Integer

revision = "0015"
down_revision = "0014"

def upgrade():
    with op.batch_alter_table("tasks", recreate="auto") as table:
        table.add_column(Column("priority", Integer, nullable=False, server_default="7"))
        table.alter_column("round", new_column_name="last_round", existing_type=Integer, existing_nullable=False)
'''
THEN_FAIL = '    op.execute("DELETE FROM nowhere")'
THEN_FORGET_TASKS = '    op.execute("DELETE FROM tasks")'

ON_SQLITE = pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
ON_MARIADB = pytest.mark.parametrize(
    "empty_database", [pytest.param("mariadb", marks=pytest.mark.mariadb)], indirect=True
)


@pytest.fixture
def empty(empty_database: Place) -> Iterator[Store]:
    store = empty_database.open()
    yield store
    store.close()


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make this code one version newer, with a script as given."""

    def make(script: str) -> None:
        folder = tmp_path / "migrations"
        shutil.copytree(schema_version.MIGRATIONS, folder)
        (folder / "versions" / "v0015_next.py").write_text(script, encoding="utf-8")
        monkeypatch.setattr(schema_version, "MIGRATIONS", folder)

    return make


def version(store: Store) -> str | None:
    with store.database.reading() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def differences(store: Store) -> list[Any]:
    """Between the tables that are there and `schema.py`."""
    with store.database.reading() as connection:
        return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata))


def an_old_user(store: Store) -> int:
    """In the columns that every version has."""
    with store.database.writing() as connection:
        connection.execute(
            text(
                "INSERT INTO users (id, name, name_key, password_hash, role, state, language, created_at) "
                "VALUES (1, 'Ada', 'ada', 'hash', 'user', 'active', 'en', 1)"
            )
        )
    return 1


def a_task_with_a_checkpoint(store: Store) -> int:
    user = store.users.create("Ada", "hash", role=UserRole.USER, state=UserState.ACTIVE, language="en", now=1.0)
    task = store.tasks.create(user.id, TaskSettings(), uuid4().hex, 1.0)
    store.checkpoints.record(task.uid, Checkpoint(round=1, path="p", digest="d" * 64, size=1, created_at=1.0))
    return task.number


def test_the_names_of_the_scripts_give_their_order() -> None:
    scripts = ScriptDirectory(str(schema_version.MIGRATIONS)).walk_revisions()
    named = sorted((path.name for path in (schema_version.MIGRATIONS / "versions").glob("v*.py")), reverse=True)
    assert [name[: len("v0001")] for name in named] == [f"v{script.revision}" for script in scripts]


def test_the_migrated_schema_is_the_one_that_the_questions_are_asked_of(empty: Store) -> None:
    empty.migrate()
    assert differences(empty) == []


@pytest.mark.parametrize(
    "change",
    ["DROP INDEX ix_tasks_state{on_tasks}", "ALTER TABLE nodes DROP COLUMN hello", "CREATE TABLE more (id INTEGER)"],
)
def test_that_comparison_sees_what_is_missing_or_too_much(empty: Store, change: str) -> None:
    empty.migrate()
    with empty.database.writing() as connection:
        on_tasks = " ON tasks" if connection.dialect.name == "mysql" else ""
        connection.execute(text(change.format(on_tasks=on_tasks)))
    assert len(differences(empty)) == 1


def test_without_tables_the_check_says_what_to_do_and_migrating_again_changes_nothing(empty: Store) -> None:
    with pytest.raises(Unavailable, match="start fedsim-server"):
        empty.check()
    empty.migrate()
    empty.check()
    number = a_task_with_a_checkpoint(empty)
    empty.migrate()
    empty.check()
    assert empty.tasks.get(number) is not None
    assert version(empty) == "0014"


def test_without_tables_a_question_says_what_to_do(empty_database: Place, empty: Store) -> None:
    if empty_database.password_file is None:
        Path(empty_database.url.removeprefix("sqlite:///")).touch()  # as an operator might, to set its owner
    with pytest.raises(Unavailable, match="start fedsim-server, which brings its tables up to date"):
        empty.users.all()


def test_daemons_that_start_at_once_migrate_once(empty: Store) -> None:
    context = multiprocessing.get_context("fork")
    together = context.Barrier(6)

    def start() -> None:
        together.wait()
        empty.migrate()
        empty.check()

    daemons = [context.Process(target=start) for _ in range(6)]
    for daemon in daemons:
        daemon.start()
    for daemon in daemons:
        daemon.join()
    assert [daemon.exitcode for daemon in daemons] == [0] * 6
    empty.check()


def test_a_database_of_a_newer_version_is_left_alone(empty: Store) -> None:
    empty.migrate()
    with empty.database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for question in (empty.check, empty.migrate):
        with pytest.raises(Unavailable, match=r"created by a newer fedsim.*9999.*install that version"):
            question()
    assert version(empty) == "9999"


def test_a_database_of_an_older_version_is_brought_up_with_all_its_rows(
    empty: Store, next_version: Callable[[str], None]
) -> None:
    empty.migrate()
    number = a_task_with_a_checkpoint(empty)
    next_version(NEXT)
    with pytest.raises(Unavailable, match="has schema 0014, older than 0015: start fedsim-server"):
        empty.check()
    empty.migrate()
    empty.check()
    with empty.database.reading() as connection:
        assert connection.execute(text("SELECT number, priority, last_round FROM tasks")).all() == [(number, 7, 0)]
    assert len(empty.checkpoints.of_task(number)) == 1


def first_version(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables as the first release made them."""
    folder = tmp_path / "first"
    shutil.copytree(
        schema_version.MIGRATIONS, folder, ignore=shutil.ignore_patterns("v000[2-9]*", "v00[1-9]*", "__pycache__")
    )
    with monkeypatch.context() as patch:
        patch.setattr(schema_version, "MIGRATIONS", folder)
        store.migrate()
    assert version(store) == "0001"


def test_a_database_of_the_first_version_keeps_its_tasks(
    empty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_version(empty, tmp_path, monkeypatch)
    user_id = an_old_user(empty)
    with empty.database.writing() as connection:
        for letter in "ab":
            connection.execute(
                text(
                    "INSERT INTO tasks (uid, user_id, state, reason, settings, created_at, stop_requested, "
                    "delete_requested, round, phase, waiting_for, nodes) "
                    "VALUES (:uid, :user, 'pending', '', '{}', 1, 0, 0, 0, '', '[]', '[]')"
                ),
                {"uid": letter * 32, "user": user_id},
            )
        connection.execute(text("INSERT INTO login_failures (key_hash, at) VALUES ('x', 1)"))
    empty.migrate()
    assert differences(empty) == []
    assert [task.uid[0] for task in empty.tasks.newest()] == ["b", "a"]
    again = [empty.tasks.create(user_id, TaskSettings(), uuid4().hex, 2.0, submission="s" * 64) for _ in range(2)]
    assert again[0] == again[1]


def second_version(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of version 0.1, with a tested and an untested task in the columns of that time."""
    folder = tmp_path / "second"
    shutil.copytree(
        schema_version.MIGRATIONS, folder, ignore=shutil.ignore_patterns("v000[3-9]*", "v00[1-9]*", "__pycache__")
    )
    with monkeypatch.context() as patch:
        patch.setattr(schema_version, "MIGRATIONS", folder)
        store.migrate()
    assert version(store) == "0002"
    user_id = an_old_user(store)
    task = (
        "INSERT INTO tasks (number, uid, user_id, state, reason, settings, created_at, stop_requested, "
        "delete_requested, round, loss, accuracy, phase, waiting_for, nodes) "
        "VALUES (:number, :uid, :user, 'completed', '', :settings, 1, 0, 0, 2, :loss, :accuracy, '', '[]', '[]')"
    )
    row = (
        "INSERT INTO rounds (task, round, digest, num_examples, train_loss, seconds, bytes_sent, bytes_received, "
        "cohort_size, missing, finished_at, loss, accuracy, recall, auc) "
        "VALUES (1, :round, 'd', 10, :train_loss, '{}', 0, 0, 1, '[]', 1, :loss, :accuracy, :recall, :auc)"
    )
    none: dict[str, Any] = dict.fromkeys(("train_loss", "loss", "accuracy", "recall", "auc"))
    rounds = [
        {**none, "round": 0, "accuracy": 0.5, "recall": "[0.5,null]"},
        {**none, "round": 1, "train_loss": 1.5},
        {"round": 2, "train_loss": 1, "loss": 0.25, "accuracy": 0.75, "recall": "[1.0,0.5]", "auc": 1},
    ]
    with store.database.writing() as connection:
        for number, loss, accuracy in ((1, 0.25, 0.75), (2, None, None)):
            values = {"number": number, "uid": str(number) * 32, "user": user_id, "loss": loss, "accuracy": accuracy}
            connection.execute(text(task), {**values, "settings": json.dumps(OLD_SETTINGS)})
        connection.execute(text(row), rounds)


OLD_SETTINGS = {"strategy": "fedprox", "weighting": "uniform", "proximal_mu": 0.5, "alpha": 0.25, "seed": 7}
TESTED = [{}, {"accuracy": 0.75, "loss": 0.25}]


def test_the_metrics_of_old_tasks_stay_readable(empty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second_version(empty, tmp_path, monkeypatch)
    empty.migrate()
    assert differences(empty) == []
    found = [(r.train_metrics, r.metrics, r.class_metrics) for r in empty.rounds.of_task(1)]
    assert found == [
        ({}, {"accuracy": 0.5, "loss": None}, {"recall": (0.5, None)}),
        ({"train_loss": 1.5}, {}, {}),
        ({"train_loss": 1.0}, {"accuracy": 0.75, "loss": 0.25, "auc": 1.0}, {"recall": (1.0, 0.5)}),
    ]
    assert [task.metrics for task in empty.tasks.newest()] == TESTED


def test_old_settings_become_options_of_their_plug_in(
    empty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_version(empty, tmp_path, monkeypatch)
    empty.migrate()
    with empty.database.reading() as connection:
        stored = [json.loads(row.settings) for row in connection.execute(text("SELECT settings FROM tasks"))]
    for settings in stored:
        assert settings["strategy_options"] == {"weighting": "uniform", "mu": 0.5}
        assert "partition_options" not in settings
    assert [task.settings.seed for task in empty.tasks.newest()] == [7, 7]


def test_every_old_round_is_converted_however_many_there_are(
    empty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_version(empty, tmp_path, monkeypatch)
    with empty.database.writing() as connection:
        many = [{"round": number} for number in range(3, 2500)]
        connection.execute(
            text(
                "INSERT INTO rounds (task, round, digest, num_examples, train_loss, seconds, bytes_sent, "
                "bytes_received, cohort_size, missing, finished_at) "
                "VALUES (2, :round, 'd', 10, :round, '{}', 0, 0, 1, '[]', 1)"
            ),
            many,
        )
    empty.migrate()
    found = empty.rounds.of_task(2)
    assert [record.train_metrics["train_loss"] for record in found] == list(range(3, 2500))
    assert len(empty.rounds.of_task(1)) == 3


@ON_MARIADB
def test_the_third_migration_continues_where_it_was_killed(
    empty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_version(empty, tmp_path, monkeypatch)
    with empty.database.writing() as connection:
        connection.execute(text("ALTER TABLE tasks ADD COLUMN metrics MEDIUMTEXT"))
        connection.execute(text("UPDATE tasks SET metrics = :new WHERE number = 1"), {"new": json.dumps(TESTED[1])})
        connection.execute(text("ALTER TABLE tasks DROP COLUMN loss"))
    empty.migrate()
    assert differences(empty) == []
    assert [task.metrics for task in empty.tasks.newest()] == TESTED
    assert empty.rounds.of_task(1)[2].metrics["auc"] == 1.0


HALF_OF_ATTEMPTS = (
    "CREATE TABLE attempts "
    "(id INTEGER AUTO_INCREMENT PRIMARY KEY, key_hash VARCHAR(64) NOT NULL, until DOUBLE NOT NULL)"
)


@ON_MARIADB
@pytest.mark.parametrize(
    "done",
    [
        ["ALTER TABLE tasks ADD COLUMN submission VARCHAR(64)"],
        [
            "ALTER TABLE tasks ADD COLUMN submission VARCHAR(64)",
            "CREATE UNIQUE INDEX ix_tasks_user_id_submission ON tasks (user_id, submission)",
            HALF_OF_ATTEMPTS,
        ],
    ],
)
def test_the_second_migration_continues_where_it_was_killed(
    empty: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    first_version(empty, tmp_path, monkeypatch)
    with empty.database.writing() as connection:
        for statement in done:
            connection.execute(text(statement))
    empty.migrate()
    assert differences(empty) == []


@ON_SQLITE
def test_a_migration_that_fails_half_way_has_not_happened(empty: Store, next_version: Callable[[str], None]) -> None:
    empty.migrate()
    number = a_task_with_a_checkpoint(empty)
    next_version(NEXT + THEN_FAIL)
    with pytest.raises(Unavailable, match="nowhere"):
        empty.migrate()
    assert version(empty) == "0014"
    assert empty.tasks.get(number) is not None


@ON_SQLITE
def test_rows_that_would_point_nowhere_stop_a_migration(empty: Store, next_version: Callable[[str], None]) -> None:
    empty.migrate()
    number = a_task_with_a_checkpoint(empty)
    next_version(NEXT + THEN_FORGET_TASKS)
    with pytest.raises(Unavailable, match="1 rows would refer to missing rows, the first in table checkpoints"):
        empty.migrate()
    assert version(empty) == "0014"
    assert empty.tasks.get(number) is not None


@ON_MARIADB
def test_the_first_migration_continues_where_it_was_killed(empty: Store) -> None:
    with empty.database.writing() as connection:
        metadata.create_all(connection, tables=[users, tasks])
        connection.execute(text("DROP INDEX ix_tasks_state ON tasks"))
    empty.migrate()
    assert differences(empty) == []


class TestFile:
    def test_a_new_file_is_not_everybodys(self, tmp_path: Path, sqlite_store: Callable[[Path], Store]) -> None:
        path = tmp_path / "a b%20?#.db"
        store = sqlite_store(path)
        store.migrate()
        a_task_with_a_checkpoint(store)
        for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            assert stat.S_IMODE(file.stat().st_mode) & 0o007 == 0, file

    def test_only_a_migration_makes_the_file(self, tmp_path: Path, sqlite_store: Callable[[Path], Store]) -> None:
        with pytest.raises(Unavailable, match=r"fedsim\.db cannot be used: unable to open.*start fedsim-server"):
            sqlite_store(tmp_path / "fedsim.db").check()
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_folder_is_named(self, tmp_path: Path, sqlite_store: Callable[[Path], Store]) -> None:
        with pytest.raises(Unavailable, match=r"nowhere cannot be used: No such file or directory; create it"):
            sqlite_store(tmp_path / "nowhere" / "fedsim.db").migrate()

    def test_a_file_of_another_kind_is_left_alone(self, tmp_path: Path, sqlite_store: Callable[[Path], Store]) -> None:
        path = tmp_path / "fedsim.db"
        path.write_bytes(b"no database at all, " * 100)
        for question in ("check", "migrate"):
            ask: Any = getattr(sqlite_store(path), question)
            with pytest.raises(Unavailable, match="not a database; use another file"):
                ask()
        assert path.read_bytes() == b"no database at all, " * 100
