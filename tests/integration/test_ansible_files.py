"""The module that writes a host's small files: only what differs, validated, at once, and nothing in check mode."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MODULE = Path(__file__).parents[2] / "ansible" / "library" / "fedsim_files.py"


def call(*files: dict[str, Any], check: bool = False) -> dict[str, Any]:
    arguments = {"ANSIBLE_MODULE_ARGS": {"files": files, "_ansible_check_mode": check}}
    done = subprocess.run(
        [sys.executable, str(MODULE)],
        input=json.dumps(arguments),
        check=False,
        capture_output=True,
        text=True,
        umask=0o077,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_files_and_links_are_written_once_whatever_the_umask(tmp_path: Path) -> None:
    path, link = tmp_path / "etc" / "drop.d" / "a.conf", tmp_path / "site"
    files = ({"path": str(path), "content": "één\n"}, {"path": str(link), "link": "etc/drop.d/a.conf"})
    assert call(*files, check=True)["paths"] == [str(path), str(link)]
    assert list(tmp_path.iterdir()) == []
    assert call(*files)["changed"]
    assert link.read_text(encoding="utf-8") == "één\n"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o644, 0o755)
    assert call(*files) == {**call(*files), "changed": False, "paths": [], "diff": []}


def test_a_folder_is_created_and_what_is_in_it_stays(tmp_path: Path) -> None:
    path = tmp_path / "opt" / "repository"
    wanted = {"path": str(path), "folder": True}
    assert call(wanted)["paths"] == [str(path)]
    assert [folder.stat().st_mode & 0o777 for folder in (path.parent, path)] == [0o755, 0o755]
    (path / "Packages").touch()
    assert not call(wanted)["changed"]
    assert (path / "Packages").exists()


@pytest.mark.parametrize("harm", ["content", "mode", "link"])
def test_what_differs_is_replaced(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "a.yml"
    wanted = {"path": str(path), "content": "a: 1\n"}
    call(wanted)
    if harm == "content":
        path.write_text("a: 2\n", encoding="utf-8")
    elif harm == "mode":
        path.chmod(0o666)
    else:
        path.rename(tmp_path / "b.yml")
        path.symlink_to("b.yml")
    assert call(wanted)["paths"] == [str(path)]
    assert path.read_text(encoding="utf-8") == "a: 1\n"
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_invalid_file_is_not_put_in_place_and_the_reason_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    call({"path": str(path), "content": "good"})
    told = call({"path": str(path), "content": "bad", "validate": "sh -c 'echo $0 is bad >&2; exit 1' %s"})
    assert told["failed"]
    assert told["msg"] == f"{path} would not be valid: {path} is bad"
    assert [(one.name, one.read_text(encoding="utf-8")) for one in tmp_path.iterdir()] == [("a.yml", "good")]
    assert not call({"path": str(path), "content": "bad", "validate": f"{sys.executable} -c pass %s"}).get("failed")
    assert path.stat().st_uid == os.geteuid()
