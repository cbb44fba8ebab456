from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from pathlib import Path, PosixPath

import numpy as np
import pytest

from fedsim.errors import BadInput, Refused, Unavailable
from fedsim.spool.allowlist import check_wanted, want
from fedsim.spool.clear import clear_file, clear_leftovers, clear_other_tasks, clear_round, clear_task
from fedsim.spool.durable import (
    TEMPORARY_SUFFIX,
    make_folder,
    move_into_place,
    remove_tree,
    replacing,
    write_bytes,
    write_json,
)
from fedsim.spool.files import FileId, Kind, metadata_path
from fedsim.spool.layout import Metadata, Spool, read_present
from fedsim.spool.npy import write_vector
from fedsim.spool.watch import Changes, Watch

A, B = "a" * 32, "b" * 32

IDS = [
    (FileId(kind=Kind.HELLO), "node-1"),
    (FileId(kind=Kind.INITPARAM, task=A), None),
    (FileId(kind=Kind.STOP, task=A), None),
    (FileId(kind=Kind.TESTSET, task=A, part="label"), "node-1"),
    (FileId(kind=Kind.REQUEST, task=A, round=0, phase="statistics"), None),
    (FileId(kind=Kind.ANSWER, task=A, round=7, phase="key_exchange"), "n.phase-x"),
    (FileId(kind=Kind.GLOBALPARAM, task=A, round=0), None),
    (FileId(kind=Kind.GLOBALPARAM, task=A, round=1_000_000), None),
    (FileId(kind=Kind.LOCALPARAM, task=A, round=3, chunk=7), "node-1"),
    (FileId(kind=Kind.LOCALPARAM, task=A, round=3, chunk=7, client=12), "n.chunk-000001"),
]


@pytest.mark.parametrize(("file_id", "sender"), IDS)
def test_a_path_tells_which_file_it_is(tmp_path: Path, file_id: FileId, sender: str | None) -> None:
    spool = Spool(tmp_path).open()
    found = spool.identify(spool.path(file_id, sender or "server"))
    assert found is not None
    assert (found.id, found.sender) == (file_id, sender)


def test_no_two_files_share_a_place(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    assert len({spool.path(file_id, sender or "x") for file_id, sender in IDS}) == len(IDS)


@pytest.mark.parametrize(
    "name",
    ["localparam/x.npy", f"globalparam/{A}/round-1.npy", f"globalparam/{A}/.round-000001.npy.tmp", "data/x", "x"],
)
def test_other_names_are_no_files_of_the_spool(tmp_path: Path, name: str) -> None:
    spool = Spool(tmp_path).open()
    assert spool.identify(tmp_path / name) is None


def put(spool: Spool, file_id: FileId, sender: str = "node-1") -> Path:
    path = spool.path(file_id, sender)
    if path.suffix == ".npy":
        digest = write_vector(path, np.ones(3, np.float32))
        told = Metadata(sender=sender, digest=digest, size=path.stat().st_size, meta={"k": 1})
        write_json(metadata_path(path), told.model_dump())
    else:
        write_json(path, {})
    return path


def local(task: str, round_number: int, chunk: int = 0) -> FileId:
    return FileId(kind=Kind.LOCALPARAM, task=task, round=round_number, chunk=chunk)


def test_what_has_arrived_is_listed_by_task_and_round(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    assert spool.arrived(Kind.LOCALPARAM, A, 1) == []
    put(spool, local(A, 1))
    put(spool, local(A, 2, 1))
    put(spool, local(A, 2, 0))
    put(spool, local(B, 2))
    (spool.folder(Kind.LOCALPARAM) / A / "round-000002" / ".half.npy").touch()
    assert len(spool.arrived(Kind.LOCALPARAM)) == 4
    assert len(spool.arrived(Kind.LOCALPARAM, A)) == 3
    found = spool.arrived(Kind.LOCALPARAM, A, 2)
    assert [item.id.chunk for item in found] == [0, 1]
    assert found[0].metadata().meta == {"k": 1}


def test_broken_metadata_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    path = put(spool, local(A, 1))
    metadata_path(path).write_text("{")
    with pytest.raises(BadInput, match=metadata_path(path).name):
        spool.arrived(Kind.LOCALPARAM)[0].metadata()


def test_folders_are_for_their_owner_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "deep" / "spool").open()
    folders = (path for path in spool.root.iterdir() if path.is_dir())
    assert {path.stat().st_mode & 0o777 for path in (spool.root, spool.incoming, *folders)} == {0o700}


def test_a_spool_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=str(tmp_path / "file" / "spool")):
        Spool(tmp_path / "file" / "spool").open()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "f", b"old")

    def write_half() -> None:
        with replacing(tmp_path / "f") as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_json_without_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "f", {"x": float("nan")})


def test_removing_a_tree_never_follows_a_link(tmp_path: Path) -> None:
    make_folder(tmp_path / "keep")
    (tmp_path / "keep" / "file").touch()
    make_folder(tmp_path / "gone")
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "keep")
    (tmp_path / "link").symlink_to(tmp_path / "keep")
    remove_tree(tmp_path / "gone")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "missing")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "keep"]


def test_a_round_is_cleared_and_the_others_stay(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    for round_number in (1, 2):
        put(spool, local(A, round_number))
        put(spool, FileId(kind=Kind.GLOBALPARAM, task=A, round=round_number))
    clear_round(spool, Kind.LOCALPARAM, A, 1)
    clear_round(spool, Kind.GLOBALPARAM, A, 1)
    clear_round(spool, Kind.GLOBALPARAM, A, 1)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == [
        "format",
        f"globalparam/{A}/round-000002.json",
        f"globalparam/{A}/round-000002.npy",
        f"localparam/{A}/round-000002/node-1.chunk-000000.json",
        f"localparam/{A}/round-000002/node-1.chunk-000000.npy",
    ]


def test_a_task_is_cleared_and_hello_stays(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    for file_id, sender in IDS:
        put(spool, file_id, sender or "server")
    put(spool, FileId(kind=Kind.STOP, task=B))
    clear_task(spool, A)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["format", "hello/node-1.json", f"stop/{B}.json"]
    clear_file(tmp_path / "stop" / f"{B}.json")
    clear_file(tmp_path / "stop" / f"{B}.json")


def test_the_sweep_leaves_only_the_tasks_that_go_on(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    for task in (A, B):
        put(spool, local(task, 1))
        put(spool, FileId(kind=Kind.INITPARAM, task=task))
    assert clear_other_tasks(spool, {B}) == {A}
    assert {item.id.task for kind in Kind for item in spool.arrived(kind)} == {B}


def test_a_task_that_is_cleared_is_not_waited_for_any_more(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    for task in (A, B):
        want(spool, task, {Kind.LOCALPARAM: ["node-1"]})
        check_wanted(spool, local(task, 1), "node-1")
    clear_task(spool, A)
    assert clear_other_tasks(spool, {A}) == {B}, "also where nothing has come yet"
    for task in (A, B):
        with pytest.raises(Refused, match="expected here"):
            check_wanted(spool, local(task, 1), "node-1")


def test_old_leftovers_go_and_young_ones_stay(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    old, young, half = spool.incoming / "old.part", spool.incoming / "young.part", tmp_path / "stop" / ".x.json.1.tmp"
    for path in (old, young, half):
        path.touch()
    for path in (old, half):
        os.utime(path, (1, 1))
    assert clear_leftovers(spool, 3600, {old}) == 1, "what is being written stays"
    assert clear_leftovers(spool, 3600) == 1
    assert [path.name for path in spool.incoming.iterdir()] == ["young.part"]


def test_a_rename_into_a_watched_folder_wakes(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    watch = Watch(spool.folder(Kind.STOP), spool.folder(Kind.LOCALPARAM))
    assert watch.drain() == Changes()
    path = put(spool, FileId(kind=Kind.STOP, task=A))
    readable, _, _ = select.select([watch], [], [], 10)
    assert readable == [watch]
    assert watch.drain() == Changes(files={path})
    watch.close()


def test_folders_that_come_later_are_watched_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    watch = Watch(spool.folder(Kind.LOCALPARAM))
    first = put(spool, local(A, 1))
    assert first.parent in watch.drain().folders
    second = put(spool, local(A, 1, 5))
    assert watch.drain() == Changes(files={second, metadata_path(second)})
    clear_task(spool, A)
    watch.drain()
    again = put(spool, local(A, 1))
    assert again.parent in watch.drain().folders
    watch.close()


def test_what_came_is_found_without_listing_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path).open()
    for chunk in range(50):
        put(spool, local(A, 1, chunk))
    watch = Watch(spool.folder(Kind.LOCALPARAM))
    new = [put(spool, local(A, 1, chunk)) for chunk in (60, 61)]
    (spool.folder(Kind.LOCALPARAM) / A / "round-000001" / "no update.npy").touch()
    listed = []
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or iter(()))
    changes = watch.drain()
    assert [item.path for item in spool.among(changes)] == new
    new[0].unlink()
    assert [item.path for item in spool.among(changes)] == new[1:]
    assert listed == []
    watch.close()


def test_a_new_folder_is_looked_at_whole(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    paths = [put(spool, local(A, 1, chunk)) for chunk in range(3)]
    (spool.folder(Kind.LOCALPARAM) / A).rename(tmp_path / "aside")
    watch = Watch(spool.folder(Kind.LOCALPARAM))
    (tmp_path / "aside").rename(spool.folder(Kind.LOCALPARAM) / A)
    changes = watch.drain()
    assert [item.path for item in spool.among(changes)] == paths
    clear_task(spool, A)
    assert spool.among(changes) == []
    watch.close()


def test_lost_events_mean_look_at_everything(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    watch = Watch(*folders)
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if most > 20_000:
        pytest.skip("this kernel queues too many events to overflow them in a test")
    one, other = tmp_path / "one" / "f", tmp_path / "f"
    other.touch()
    # Equal neighbouring events are merged by the kernel, so two names take turns.
    for number in range(most + 10):
        other.rename(one.with_name(f"f{number % 2}"))
        one.with_name(f"f{number % 2}").rename(other)
    assert watch.drain().folders == set(folders)
    watch.close()


def test_clearing_a_task_survives_files_that_come_meanwhile(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    stop = threading.Event()

    def receive() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            file = FileId(kind=Kind.LOCALPARAM, task=A, round=number % 5, chunk=number % 7)
            with suppress(FileNotFoundError):  # its folder went that moment: the sender is told to try again
                write_bytes(spool.path(file, "node"), b"late")

    receiver = threading.Thread(target=receive)
    receiver.start()
    try:
        for _ in range(200):
            clear_task(spool, A)
            clear_leftovers(spool, 3600)
    finally:
        stop.set()
        receiver.join()
    clear_task(spool, A)
    assert spool.arrived(Kind.LOCALPARAM, A) == []
    assert clear_leftovers(spool, 0) == 0, "nothing is left lying under a temporary name"


class UsedAtOnce(PosixPath):
    """A file whose reader is faster than its writer: it is used and its folder cleared as soon as it has its name."""

    def rename(self, target: str | os.PathLike[str]) -> UsedAtOnce:
        super().rename(target)
        remove_tree(Path(target).parent)
        return self


def test_a_file_that_is_used_before_its_name_is_durable_was_put_into_place(tmp_path: Path) -> None:
    come = UsedAtOnce(tmp_path / "come.part")
    come.write_bytes(b"parameters")
    move_into_place(come, tmp_path / "round-000001" / "node-a.npy")
    assert list(tmp_path.iterdir()) == []


class SweptAtOnce(PosixPath):
    """A folder that the receiver's sweep takes away as soon as it has its temporary name."""

    def rename(self, target: str | os.PathLike[str]) -> SweptAtOnce:
        super().rename(target)
        clear_leftovers(Spool(self.parents[2]).open(), -60.0)
        return self


def test_a_folder_that_is_swept_while_it_is_removed_is_removed(tmp_path: Path) -> None:
    folder = SweptAtOnce(Spool(tmp_path).open().folder(Kind.LOCALPARAM) / "task" / "round-000001")
    folder.mkdir(parents=True)
    (folder / "node-a.npy").touch()
    remove_tree(folder)
    assert list(Path(folder).parent.iterdir()) == []


def test_a_file_that_vanished_before_it_had_its_name_was_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        move_into_place(tmp_path / "come.part", tmp_path / "round-000001" / "node-a.npy")


def test_a_folder_that_a_crash_left_half_removed_goes_with_the_sweep(tmp_path: Path) -> None:
    spool = Spool(tmp_path).open()
    half = spool.folder(Kind.LOCALPARAM) / f".{A}.0123{TEMPORARY_SUFFIX}"
    half.mkdir()
    (half / "file.npy").write_bytes(b"x")
    assert clear_leftovers(spool, 3600) == 0
    assert clear_leftovers(spool, 0) == 1
    assert not half.exists()


def test_files_that_were_removed_with_their_task_are_left_out(tmp_path: Path) -> None:
    """The writer's thread clears a task that ended while the loop reads what has arrived."""
    spool = Spool(tmp_path)
    spool.open()
    for letter in "ab":
        (spool.folder(Kind.STOP) / f"{letter * 32}.json").write_bytes(letter.encode())
    arrived = spool.arrived(Kind.STOP)
    clear_task(spool, "a" * 32)
    assert [(item.id.task, content) for item, content in read_present(arrived)] == [("b" * 32, b"b")]
