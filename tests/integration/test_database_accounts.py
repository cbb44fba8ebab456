"""The database's accounts of a deployed lab, on a real MariaDB: each can do what its program does, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from database_support import MariaDb, Place
from sqlalchemy import text
from store_support import COMPLETED, NOW, RUNNING, STARTING, again, new_round, new_task, new_user
from web_support import hello

from fedsim.cli.commands.admin import admin
from fedsim.errors import Unavailable
from fedsim.settings import TaskSettings
from fedsim.store import Store, open_store
from fedsim.store.records import Checkpoint, Event, Node, PinnedDataSet, Progress, Resumable, UserRole, UserState

GRANTS = Path(__file__).parents[2] / "ansible" / "roles" / "database" / "files" / "grants.sql"
ACCOUNTS = ("fedsim", "fedsim-web", "fedsim-migrations")

pytestmark = pytest.mark.mariadb


@pytest.fixture(scope="module")
def lab_database(mariadb: MariaDb, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """A database whose accounts have what the role grants; returns where an account finds it.

    The accounts have the prefix `t-`, as the server of the tests has its own `fedsim`.
    """
    name = mariadb.new_database()
    password = tmp_path_factory.mktemp("secrets") / "password"
    password.write_text("a password of tests\n")
    for account in ACCOUNTS:
        mariadb.execute(f"CREATE USER 't-{account}'@'127.0.0.1' IDENTIFIED BY 'a password of tests'")

    def place(account: str) -> Place:
        url = mariadb.url(name).replace("//fedsim@", f"//t-{account}@")
        return Place(url, password)

    mariadb.execute(f"GRANT ALL ON {name}.* TO 't-fedsim-migrations'@'127.0.0.1'")
    config = tmp_path_factory.mktemp("etc") / "web.yml"
    web = place("fedsim-web")
    config.write_text(f"name: web\ndatabase: {web.url}\ndatabase_password_file: {password}\n")
    arguments = ["migrate", "--user", "t-fedsim-migrations", "--password-file", str(password), "--config", str(config)]
    done = CliRunner().invoke(admin, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for statement in granting(name):
        mariadb.execute(statement)
    return place


def granting(database: str) -> list[str]:
    """The statements of the role, for a database and accounts of the tests."""
    lines = [line for line in GRANTS.read_text(encoding="utf-8").splitlines() if not line.startswith("--")]
    text_ = re.sub(r"'(fedsim[a-z-]*)'@", r"'t-\1'@", "\n".join(lines)).replace("fedsim.", f"{database}.")
    return [statement.strip() for statement in text_.split(";") if statement.strip()]


@pytest.fixture
def opened(lab_database: Callable[[str], Place]) -> Iterator[Callable[[str], Store]]:
    stores = []

    def opening(account: str) -> Store:
        place = lab_database(account)
        stores.append(open_store(place.url, place.password_file))
        return stores[-1]

    yield opening
    for store in stores:
        store.close()


def test_the_web_keeps_accounts(opened: Callable[[str], Store]) -> None:
    web = opened("fedsim-web")
    web.check()
    user = new_user(web, "Grace", role=UserRole.ADMIN)
    web.users.set_state(user.id, UserState.DISABLED)
    web.users.set_state(user.id, UserState.ACTIVE)
    web.users.set_role(user.id, UserRole.USER)
    web.users.set_password_hash(user.id, "another", must_change=True)
    web.users.renew_password_hash(user.id, "another", "a third")
    web.users.set_language(user.id, "zh")
    web.users.set_totp(user.id, "secret")
    assert web.users.use_totp_step(user.id, 7)
    assert "Grace" in [one.name for one in web.users.all()]
    assert web.users.get(user.id) == web.users.by_name("grace")
    assert web.users.by_openid("unknown") is None
    web.attempts.record("key", now=NOW, until=NOW + 1)
    assert web.attempts.count("key", NOW) == 1
    web.attempts.clear("key")


def test_web_and_server_take_a_task_to_its_end(opened: Callable[[str], Store]) -> None:
    web, server = opened("fedsim-web"), opened("fedsim")
    user = new_user(web, "Ada")
    task = web.tasks.create(user.id, TaskSettings(), "1" * 32, NOW, submission="s" * 64, most_unfinished=3)
    assert web.tasks.by_submission(user.id, "s" * 64) == task
    assert web.tasks.queue_positions() == {task.number: 1}
    claimed = server.tasks.claim_next(NOW)
    assert claimed is not None
    assert claimed.user_name == "Ada"
    server.tasks.set_nodes(task.uid, ("node-a",), {"node-b": "offline"})
    server.tasks.set_notes(task.uid, ("a note",))
    assert server.tasks.move(task.uid, RUNNING, now=NOW)
    server.tasks.set_progress(task.uid, Progress(round=1, phase="train"))
    assert server.tasks.given_to("node-a", [task.uid]) == [task.uid]
    server.rounds.record(task.uid, new_round(1), {"node-a": {"rounds": 1}})
    server.rounds.record(task.uid, new_round(1))
    server.checkpoints.record(task.uid, Checkpoint(round=1, path="p", digest="d" * 64, size=1, created_at=NOW))
    assert [one.round for one in web.rounds.of_task(task.number)] == [1]
    assert web.rounds.count(task.number) == 1
    assert web.rounds.missing(task.number)
    assert web.rounds.metrics(task.number, [1])
    assert [one.round for one in web.checkpoints.of_task(task.number)] == [1]
    assert web.tasks.request_stop(task.number, NOW)
    assert server.tasks.move(task.uid, COMPLETED, now=NOW, digest="d" * 64, resumable=Resumable("2" * 32, 1, None))
    assert not web.tasks.request_resume(task.number)  # nor is that forbidden
    server.checkpoints.expired(finished_before=NOW + 1, keep_tasks=1)
    server.checkpoints.mark_removed(task.number, 1, why="retention", now=NOW)
    server.tasks.resumable(finished_before=NOW + 1)
    server.tasks.forget_resume(task.number, "2" * 32, "expired")
    assert again(server, task).digest == "d" * 64
    for store in (web, server):
        store.events.add(Event(NOW, "task_stopped", "something", task.number))
    assert web.events.newest(task=task.number)
    assert web.tasks.request_delete(task.number)
    assert [one.number for one in server.tasks.to_delete()] == [task.number]
    server.tasks.delete(task.number)
    assert web.rounds.of_task(task.number) == []


def test_web_and_server_serve_queue_nodes_and_data_sets(opened: Callable[[str], Store]) -> None:
    web, server = opened("fedsim-web"), opened("fedsim")
    user = new_user(web, "Alan")
    stopped, over = new_task(web, user), new_task(web, user)
    assert web.tasks.request_stop(stopped.number, NOW)
    assert server.tasks.move(over.uid, STARTING, now=NOW)
    assert server.tasks.start_over(over.uid, "3" * 32)
    assert web.tasks.newest()
    server.nodes.record(Node("node-a", NOW, hello("node-a")))
    server.nodes.record(Node("node-a", NOW + 1, hello("node-a")))
    assert [node.name for node in web.nodes.some(["node-a"])] == ["node-a"]
    assert web.nodes.seen()
    server.nodes.keep(["node-b"])
    assert server.datasets.pin(PinnedDataSet("digits", "d" * 64, NOW))
    assert web.datasets.all() == server.datasets.all()
    assert web.datasets.forget("digits")


@pytest.mark.parametrize(
    ("account", "statement"),
    [
        ("fedsim-web", "INSERT INTO rounds (task) VALUES (1)"),
        ("fedsim-web", "UPDATE rounds SET digest = ''"),
        ("fedsim-web", "DELETE FROM rounds"),
        ("fedsim-web", "UPDATE checkpoints SET digest = ''"),
        ("fedsim-web", "UPDATE nodes SET hello = '{}'"),
        ("fedsim-web", "UPDATE datasets SET digest = ''"),
        ("fedsim-web", "DELETE FROM events"),
        ("fedsim-web", "UPDATE events SET text = ''"),
        ("fedsim-web", "DELETE FROM tasks"),
        ("fedsim", "SELECT password_hash FROM users"),
        ("fedsim", "UPDATE users SET role = 'admin'"),
        ("fedsim", "SELECT * FROM sessions"),
        ("fedsim", "INSERT INTO tokens (user_id) VALUES (1)"),
        ("fedsim", "UPDATE events SET text = ''"),
        *(
            (account, statement)
            for account in ("fedsim-web", "fedsim")
            for statement in (
                "CREATE TABLE more (id INT)",
                "ALTER TABLE tasks ADD more INT",
                "DROP TABLE rounds",
                "TRUNCATE TABLE events",
                "CREATE TRIGGER t BEFORE INSERT ON tasks FOR EACH ROW SET @a = 1",
                "UPDATE alembic_version SET version_num = 'x'",
                "SELECT * FROM mysql.global_priv",
                "SELECT 1 INTO OUTFILE '/tmp/fedsim-written-by-a-test'",
            )
        ),
    ],
)
def test_neither_can_do_more(opened: Callable[[str], Store], account: str, statement: str) -> None:
    store = opened(account)
    with pytest.raises(Exception, match=r"denied"), store.database.writing() as connection:
        connection.execute(text(statement))


def test_a_daemon_that_may_not_migrate_says_who_can(opened: Callable[[str], Store], mariadb: MariaDb) -> None:
    server = opened("fedsim")
    database = server.database.url.database
    with server.database.reading() as connection:
        current = connection.scalar(text("SELECT version_num FROM alembic_version"))
    older = f"UPDATE {database}.alembic_version SET version_num = '%s'"  # noqa: S608 - of this test
    mariadb.execute(older % "0006")
    try:
        with pytest.raises(Unavailable, match="run `fedsim admin migrate` with an account that may change its tables"):
            server.migrate()
    finally:
        mariadb.execute(older % current)
