from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import Terminal, Web, serving

from fedsim.store.records import Task

OLD, NEW = b"the model of round 2" * 1000, b"the model of round 4" * 1000


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with serving(tmp_path) as web:
        yield web


@pytest.fixture
def terminal(web: Web, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Terminal:
    terminal = Terminal(capsys, monkeypatch, tmp_path)
    terminal.use(web.url, web.token("ada"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return terminal


@pytest.fixture
def task(web: Web, terminal: Terminal) -> Task:  # noqa: ARG001 - the terminal makes the task's owner
    task = web.site.task("ada", num_rounds=4)
    web.site.run_rounds(task, 4)
    web.save_checkpoint(task, 2, OLD)
    web.save_checkpoint(task, 4, NEW)
    return task


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


@pytest.mark.usefixtures("task")
def test_the_last_checkpoint_comes_with_its_description(terminal: Terminal) -> None:
    result = terminal.run("download", 1)
    assert result.code == 0, result.err
    assert files() == ["task-1-round-0004.json", "task-1-round-0004.safetensors"]
    assert Path("task-1-round-0004.safetensors").read_bytes() == NEW
    assert json.loads(Path("task-1-round-0004.json").read_text(encoding="utf-8")) == {"round": 4}
    assert "task-1-round-0004.safetensors" in result.out


@pytest.mark.usefixtures("task")
def test_another_round_goes_where_it_is_wanted(terminal: Terminal) -> None:
    Path("folder").mkdir()
    assert terminal.run("download", 1, "--round", 2, "-o", "folder").code == 0
    assert Path("folder", "task-1-round-0002.safetensors").read_bytes() == OLD
    result = terminal.run("download", 1, "--round", 2, "-o", "model.safetensors", "--json")
    assert result.document["path"] == "model.safetensors"
    assert Path("model.safetensors").read_bytes() == OLD


@pytest.mark.usefixtures("task")
@pytest.mark.parametrize("name", ["task-1-round-0004.safetensors", "task-1-round-0004.json"])
def test_nothing_is_overwritten_unless_forced(terminal: Terminal, name: str) -> None:
    Path(name).write_bytes(b"mine")
    result = terminal.run("download", 1)
    assert result.code == 65
    assert "--force" in result.err
    assert files() == [name]
    assert Path(name).read_bytes() == b"mine"
    assert terminal.run("download", 1, "--force").code == 0
    assert Path("task-1-round-0004.safetensors").read_bytes() == NEW


@pytest.mark.parametrize("damage", [NEW[:-1] + b"!", NEW[:-5], NEW + b"more"])
def test_what_is_not_what_the_server_saved_is_not_kept(web: Web, terminal: Terminal, task: Task, damage: bytes) -> None:
    (web.site.config.checkpoints / f"task-{task.number}" / "round-0004.safetensors").write_bytes(damage)
    result = terminal.run("download", 1)
    assert result.code == 69
    assert "nothing was stored" in result.err
    assert files() == []


def test_a_checkpoint_that_is_deleted_or_never_was_exits_66(web: Web, terminal: Terminal, task: Task) -> None:
    web.site.store.checkpoints.mark_removed(task.number, 2, why="too old", now=web.site.now)
    for arguments, told in ((("--round", 2), "too old"), (("--round", 3), "rounds: 4")):
        result = terminal.run("download", 1, *arguments)
        assert result.code == 66
        assert told in result.err
    web.site.task("ada")
    result = terminal.run("download", 2)
    assert result.code == 66
    assert "no checkpoint yet" in result.err


@pytest.mark.usefixtures("task")
def test_a_folder_that_cannot_be_written_to_is_named(terminal: Terminal) -> None:
    Path("file").write_bytes(b"")
    result = terminal.run("download", 1, "-o", "file/model.safetensors")
    assert result.code == 65
    assert "file/model.safetensors cannot be written" in result.err
