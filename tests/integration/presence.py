"""What a test needs and this machine may lack: where everything must run (`CI=true`) that is a failure, else a skip."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest

DATA = Path(os.environ.get("FEDSIM_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")


def missing(what: str) -> NoReturn:
    """Skip or fail the test: it cannot run without `what`, which says how to install it."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def real_data(name: str) -> Path:
    """A folder of real data."""
    if not (DATA / name).is_dir():
        missing(f"{DATA / name} is not there: set FEDSIM_TEST_DATA to the folder that holds {name}")
    return DATA / name


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A small file system, mounted on the new folder."""
    folder.mkdir(parents=True)
    command = ["/bin/mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        missing("a small file system must be mounted: run as root, where mounting is allowed")
    try:
        yield folder
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until there is no room."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
