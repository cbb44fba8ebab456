"""An upgrade during a task: its workers stay those of the version under which it began, wherever that is installed."""

from __future__ import annotations

import json
import shutil
import site
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from platform_support import Platform, digits_lab

from fedsim import __version__
from fedsim.spool.sealed import read_sealed, write_sealed
from fedsim.store.records import Task
from fedsim.worker.interpreters import interpreter_of

OLD = "0.0.9"
LONG = {"local_epochs": 6, "num_rounds": 8, "save_every": 8, "num_nodes": 1}


def install(opt: Path) -> Path:
    """This version, in an environment of its own that has everything from the one that the tests run in."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(opt / __version__)
    (packages,) = (opt / __version__).glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(
        "\n".join(f"import site; site.addsitedir({path!r})" for path in site.getsitepackages())
    )
    return opt / __version__ / "bin" / "python"


def install_old(opt: Path) -> Path:
    """An older version: a program that notes its start, and then is this one. Returns where it notes it."""
    python, started = opt / OLD / "bin" / "python", opt / "started"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$5" >> {started}\nexec {opt / __version__ / "bin" / "python"} "$@"\n')
    python.chmod(0o755)
    return started


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("upgrade")
    python = install(folder / "opt")
    lab = digits_lab(folder, nodes=1)
    for name, package in (("server", "server"), ("node-a", "owner")):
        run = f"import sys; from fedsim.{package}.main import main; sys.exit(main())"
        lab.processes[name].command = [str(python), "-c", run, "--config", str(lab.config(name))]
    with lab:
        yield lab


def begin_under_the_old_version(lab: Platform) -> int:
    """A task in its second round, and server and node down, as if they had been of the old version until now."""
    number = lab.submit(**LONG)
    lab.await_round(number, 2)
    lab.kill("server")
    lab.kill("node-a")
    uid = lab.task(number).uid

    def change(path: Path, content: dict[str, Any]) -> None:
        write_sealed(path, read_sealed(path) | content)

    change(lab.server_spool / "globalparam" / uid / "plan.json", {"version": OLD})
    change(lab.server_spool / "globalparam" / uid / "versions.json", {"hosts": {"the server": [OLD], "node-a": [OLD]}})
    (lab.server_spool / "hello" / "node-a.json").unlink()  # the node's last words, in which it is of this version
    change(
        lab.node_spool("node-a") / "localparam" / uid / "versions.json", {"version": OLD, "hosts": {"node-a": [OLD]}}
    )
    return number


def finished(lab: Platform, number: int) -> tuple[Task, dict[str, Any], list[str]]:
    """The finished task, the metadata of its checkpoint, and its notes about versions."""
    task = lab.completed(number)
    about = lab.server_spool / "checkpoints" / f"task-{number}" / "round-0008.json"
    events = [event.text for event in lab.store.events.newest(task=number) if event.kind == "version"]
    return task, json.loads(about.read_text()), events


def test_a_running_task_keeps_the_workers_of_its_version_and_its_bytes(lab: Platform) -> None:
    alone, about, _ = finished(lab, lab.submit(**LONG))
    assert about["versions"] == {"the server": [__version__], "node-a": [__version__]}
    started = install_old(lab.folder / "opt")
    number = begin_under_the_old_version(lab)
    lab.start("server", "node-a")
    parents = {str(lab.processes[name].pid) for name in ("server", "node-a")}
    task, about, events = finished(lab, number)
    assert parents == set(started.read_text().split()), (
        "workers of both daemons were started by the old version's python"
    )
    assert task.digest == alone.digest
    assert (about["version"], about["not_comparable"], events) == (OLD, None, [])


def test_where_that_version_is_deleted_the_task_continues_and_says_that_it_is_not_comparable(lab: Platform) -> None:
    shutil.rmtree(lab.folder / "opt" / OLD, ignore_errors=True)
    number = begin_under_the_old_version(lab)
    lab.start("server", "node-a")
    _, about, events = finished(lab, number)
    for who in ("the server", "node-a"):
        assert about["versions"][who] == [OLD, __version__]
        told = f"the workers on {who} are of version {__version__}; the task began with {OLD}"
        assert f"{told}: its result is not comparable with others" in events
    assert about["not_comparable"] == f"computed by workers of several versions of fedsim: {OLD}, {__version__}"
    for name in ("server", "node-a"):
        assert "other_version" in lab.processes[name].log.read_text()


@pytest.mark.parametrize("version", ["../0.0.9", "", "0.0.9/../x", __version__, "7.7.7"])
def test_only_a_versions_own_environment_beside_ours_is_ever_run(tmp_path: Path, version: str) -> None:
    install_old(tmp_path / "opt")
    chosen = interpreter_of(version, prefix=tmp_path / "opt" / __version__)
    assert (chosen.python, chosen.version) == (Path(sys.executable), __version__)
