"""Damaged files: the task fails with the file named, or ends with the same bytes; the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from platform_support import Platform, digits_lab, undisturbed

LONG = {"strategy": "scaffold", "local_epochs": 6, "num_rounds": 5}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with digits_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lose(path: Path) -> None:
    path.unlink()


ALWAYS = ("counts.json", "model.npy", "globalparam/*/round-*.npy")  # further ones have the mark `long`
FILES = [
    ("server", "globalparam/*/plan.json"),
    ("server", "globalparam/*/counts.json"),
    ("server", "globalparam/*/versions.json"),
    ("server", "globalparam/*/round-*/round.json"),
    ("server", "globalparam/*/round-*/model.npy"),
    ("server", "globalparam/*/round-*/state-*.npy"),
    ("server", "globalparam/*/round-*/broadcast.npy"),
    ("node-a", "localparam/*/versions.json"),
    ("node-a", "localparam/*/clients/client-*/round-*.npy"),
    ("node-a", "initparam/*.json"),
    ("node-a", "globalparam/*/round-*.npy"),
    ("node-a", "wanted/*.json"),
]


@pytest.mark.parametrize(
    ("host", "pattern"),
    [
        pytest.param(*file, id="-".join(file), marks=() if file[1].endswith(ALWAYS) else pytest.mark.long)
        for file in FILES
    ],
)
@pytest.mark.parametrize(
    "damage", [flip, pytest.param(cut, marks=pytest.mark.long), pytest.param(empty, marks=pytest.mark.long)]
)
def test_a_damaged_file_fails_its_task_with_its_name_or_changes_no_byte(
    lab: Platform, host: str, pattern: str, damage: Callable[[Path], None]
) -> None:
    number = lab.submit(**LONG)
    lab.await_round(number, 2)
    lab.kill(host)
    spool = lab.server_spool if host == "server" else lab.node_spool(host)
    *_, path = sorted(spool.glob(pattern))
    damage(path)
    lab.start(host)
    task = lab.finish(number)
    assert task.digest == undisturbed(**LONG) or (task.state == "failed" and path.name in task.reason), task
    lab.completed(lab.submit(num_rounds=1))
