"""What the kernel's limits of inotify do: an error that names them, not a full disk; and links that lead in circles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from presence import missing

from fedsim.errors import EX_UNAVAILABLE, FedsimError, Unavailable, WatchLimit
from fedsim.spool.watch import Watch

WATCH = """
import sys
from pathlib import Path
from fedsim.errors import WatchLimit
from fedsim.spool.host_errors import host_errors
from fedsim.spool.watch import Watch
folder = Path(sys.argv[1])
try:
    with host_errors():
        watch = Watch(folder / "early")
        (folder / "early" / "late").mkdir()
        watch.drain()
        watch.drain()
except WatchLimit as error:
    print("WatchLimit:", error)
if len(sys.argv) > 2:
    try:
        watch.complete()
    except WatchLimit:
        print("still")
    Path(sys.argv[2]).write_text("100")
    watch.complete()
    (folder / "early" / "late" / "file").touch()
    (folder / "early" / "late" / "file").rename(folder / "early" / "late" / "renamed")
    print(sorted(path.name for path in watch.drain().files))
"""


def with_limit(limit: str, value: int, folder: Path, *, raised: bool = False) -> str:
    """Watch folders where this user's limit is this low, in a name space of its own, so that no other user notices."""
    script = f'echo {value} > /proc/sys/user/{limit} && exec "$@"'
    inside = ["/usr/bin/unshare", "--user", "--map-root-user", "/bin/sh", "-c", script, "sh"]
    if subprocess.run([*inside, "/bin/true"], capture_output=True, check=False).returncode:
        missing("limits can only be set in a user name space, which this machine does not allow")
    command = [*inside, sys.executable, "-c", WATCH, str(folder), *([f"/proc/sys/user/{limit}"] if raised else [])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_too_many_folders_are_not_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "early" / "below").mkdir(parents=True)
    said = with_limit("max_inotify_watches", 1, tmp_path)
    assert said.startswith(f"WatchLimit: {tmp_path / 'early' / 'below'} cannot be watched")
    assert "sysctl fs.inotify.max_user_watches=" in said


def test_a_folder_that_comes_later_meets_the_same_limit(tmp_path: Path) -> None:
    (tmp_path / "early").mkdir()
    said = with_limit("max_inotify_watches", 1, tmp_path)
    assert said.startswith(f"WatchLimit: {tmp_path / 'early' / 'late'} cannot be watched")


def test_once_the_limit_is_raised_the_folders_that_were_left_out_are_watched(tmp_path: Path) -> None:
    (tmp_path / "early").mkdir()
    said = with_limit("max_inotify_watches", 1, tmp_path, raised=True).splitlines()
    assert said[1:] == ["still", "['renamed']"]


def test_too_many_watching_programs_are_named(tmp_path: Path) -> None:
    (tmp_path / "early").mkdir()
    assert "sysctl fs.inotify.max_user_instances=" in with_limit("max_inotify_instances", 0, tmp_path)


def test_the_limit_ends_a_daemon_and_is_not_waited_for() -> None:
    assert WatchLimit.exit_code == EX_UNAVAILABLE
    assert issubclass(WatchLimit, FedsimError)
    assert not issubclass(WatchLimit, Unavailable), "what is unavailable is waited for, again and again"


@pytest.mark.timeout(30)
def test_links_that_lead_in_circles_are_followed_once(tmp_path: Path) -> None:
    for name in ("here", "there", "again"):
        (tmp_path / name).symlink_to(tmp_path)
    watch = Watch(tmp_path, written=True)
    (tmp_path / "file").touch()
    assert {path.name for path in watch.drain().files} == {"file"}
    watch.close()
