"""The format of a state directory: refused when another, migrated step by step, whatever interrupts it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedsim.errors import EX_CONFIG, EX_TRY_AGAIN
from fedsim.migrations import from_0_1, steps
from fedsim.migrations.command import main, migrate
from fedsim.migrations.from_0_1 import TasksInProgress
from fedsim.migrations.steps import migrate_state
from fedsim.spool import format as spool_format
from fedsim.spool.durable import remove_tree
from fedsim.spool.format import FORMAT, WrongFormat, read_format
from fedsim.spool.layout import Spool

UID = "0123456789abcdef" * 2
LINE = '{"kind": "localparam"}\n'


def old_node(folder: Path) -> Path:
    """What a node of 0.1 leaves: no number."""
    for kind in ("hello", "initparam", "testset", "globalparam", "localparam", "stop", "wanted", ".incoming"):
        (folder / kind).mkdir(parents=True)
    (folder / "left.jsonl").write_text(LINE)
    (folder / ".incoming" / "half").write_text("half")
    (folder / "checkpoints").mkdir()
    about = folder / "checkpoints" / "task-000001.json"
    about.write_text(json.dumps({"task": 1, "settings": {"strategy": "fedavg"}, "digest": "ab"}))
    about.chmod(0o640)
    return folder


def old_server(folder: Path) -> Path:
    old_node(folder)
    (folder / "left.jsonl").unlink()
    (folder / "nodes.json").write_text("{}")
    (folder / "initparam" / f"{UID}.json").write_text("{}")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_directory_gets_the_number_and_its_daemons_may_start_at_once(tmp_path: Path) -> None:
    Spool(tmp_path / "spool").open()
    assert read_format(tmp_path / "spool") == FORMAT
    Spool(tmp_path / "spool").open()


@pytest.mark.parametrize(
    ("number", "what_to_do"),
    [
        (None, "older fedsim; .* run upgrade.yml, or .*`fedsim-migrate"),
        ("1", "older fedsim; .* run upgrade.yml, or .*`fedsim-migrate"),
        (str(FORMAT + 1), "newer fedsim; .* install that version again, or restore a backup"),
        ("two", "does not hold a number: restore the directory from a backup"),
    ],
)
def test_a_directory_of_another_format_is_refused_and_left_alone(
    tmp_path: Path, number: str | None, what_to_do: str
) -> None:
    old_node(tmp_path)
    if number is not None:
        (tmp_path / "format").write_text(number)
    before = content(tmp_path)
    with pytest.raises(WrongFormat, match=what_to_do) as refused:
        Spool(tmp_path).open()
    assert refused.value.exit_code == EX_CONFIG
    assert content(tmp_path) == before


def test_a_node_of_0_1_keeps_its_log_and_its_models(tmp_path: Path) -> None:
    old_node(tmp_path)
    assert migrate_state(tmp_path)[-1] == f"{tmp_path}: format 1 is now format 2"
    assert (tmp_path / "audit.jsonl").read_text() == LINE
    assert not (tmp_path / "left.jsonl").exists()
    about = tmp_path / "checkpoints" / "task-000001.json"
    assert json.loads(about.read_bytes())["digest"] == "ab"
    assert about.stat().st_mode & 0o777 == 0o640
    assert list((tmp_path / ".incoming").iterdir()) == []
    Spool(tmp_path).open()
    assert migrate_state(tmp_path) == []


@pytest.mark.parametrize("make", [old_node, old_server])
def test_an_unfinished_task_is_discarded_only_if_that_is_asked_for(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    make(tmp_path)
    (tmp_path / "globalparam" / UID).mkdir()
    (tmp_path / "globalparam" / UID / "plan.json").write_text("{}")
    before = content(tmp_path)
    with pytest.raises(TasksInProgress, match=f"unfinished tasks .{UID}.*--discard-tasks"):
        migrate_state(tmp_path)
    assert content(tmp_path) == before
    assert f"{tmp_path}: discarded the files of task {UID}" in migrate_state(tmp_path, discard_tasks=True)
    assert list((tmp_path / "globalparam").iterdir()) == []
    Spool(tmp_path).open()


def test_a_waiting_task_does_not_stop_the_migration_of_a_server(tmp_path: Path) -> None:
    migrate_state(old_server(tmp_path))
    Spool(tmp_path).open()


def test_an_assigned_task_stops_the_migration_of_a_node(tmp_path: Path) -> None:
    (old_node(tmp_path) / "initparam" / f"{UID}.json").write_text("{}")
    with pytest.raises(TasksInProgress):
        migrate_state(tmp_path)


def test_a_migration_that_is_killed_anywhere_is_continued_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change of the disk in turn is the last one before the process dies."""
    wanted = None
    for allowed in range(50):
        folder = old_node(tmp_path / str(allowed))
        left = allowed

        def counted(function: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", counted(os.rename))
            patch.setattr(Path, "rename", counted(Path.rename))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            patch.setattr(from_0_1, "remove_tree", counted(remove_tree))
            killed = False
            try:
                migrate_state(folder)
            except KeyboardInterrupt:
                killed = True
        migrate_state(folder)
        found = {name: data for name, data in content(folder).items() if not Path(name).name.endswith(".tmp")}
        wanted = wanted or found
        assert found == wanted
        assert read_format(folder) == FORMAT
        if not killed:
            return
    pytest.fail("the migration never ended")


def test_every_older_format_has_a_step() -> None:
    assert sorted(steps.STEPS) == list(range(1, spool_format.FORMAT))


def test_the_command_says_what_it_did_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node, server = old_node(tmp_path / "client"), old_server(tmp_path / "server")
    (server / "localparam" / UID).mkdir()
    check = ["--check", str(node), str(server), str(tmp_path / "unused")]
    assert CliRunner().invoke(migrate, check).output.splitlines() == [str(node), str(server)]
    assert main([str(node), str(server)]) == EX_TRY_AGAIN
    printed = capsys.readouterr()
    assert re.search(f"{node}: format 1 is now format 2", printed.out)
    assert "--discard-tasks" in printed.err
    second = CliRunner().invoke(migrate, [str(node), str(server), "--discard-tasks"])
    assert second.exit_code == 0
    assert f"{server}: format 1 is now format 2" in second.output
    assert CliRunner().invoke(migrate, check).output == ""
    third = CliRunner().invoke(migrate, [str(node), str(server), str(tmp_path / "unused")])
    assert (third.exit_code, third.output) == (0, "")
    assert not (tmp_path / "unused").exists()
