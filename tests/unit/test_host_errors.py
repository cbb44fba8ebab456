"""What a host does to every task: full, read-only or failing disks, limits, damaged files; one daemon for a spool."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from pathlib import Path

import pytest
from presence import small_disk

from fedsim.errors import DamagedFile, DiskFull, HostTrouble, SuspendReason, Unavailable
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.spool.durable import write_bytes
from fedsim.spool.host_errors import check_usable, host_errors
from fedsim.spool.lock import FolderLock
from fedsim.spool.npy import check_digest
from fedsim.spool.sealed import read_sealed, write_sealed
from fedsim.worker.jobs import JobFailed, MakeInitialModel
from fedsim.worker.main_loop import Worker

MIB = 1 << 20


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        *((number, DiskFull) for number in (errno.ENOSPC, errno.EDQUOT)),
        *((number, HostTrouble) for number in (errno.EROFS, errno.EIO, errno.ESTALE)),
        *((number, HostTrouble) for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)),
    ],
)
def test_an_error_of_the_host_suspends_and_names_what_it_was_about(number: int, kind: type, tmp_path: Path) -> None:
    with pytest.raises(kind, match=str(tmp_path)), host_errors():
        raise OSError(number, os.strerror(number), str(tmp_path / "model.npy"))


def test_a_read_only_disk_is_named_and_is_waited_for(tmp_path: Path) -> None:
    with small_disk(tmp_path / "spool", 4) as disk:
        check_usable(disk, MIB)
        subprocess.run(["/bin/mount", "-o", "remount,ro", str(disk)], check=True)
        with (
            pytest.raises(HostTrouble, match=f"Read-only file system: check the disk of {disk}") as found,
            host_errors(),
        ):
            write_bytes(disk / "counts.json", b"1")
        assert found.value.folder == disk
        with pytest.raises(HostTrouble):
            check_usable(disk, 0)
        subprocess.run(["/bin/mount", "-o", "remount,rw", str(disk)], check=True)
        check_usable(disk, 0)
        with pytest.raises(DiskFull, match=f"{disk} is full: waiting for {8 * MIB} free bytes"):
            check_usable(disk, 8 * MIB)
        check_usable(disk / "round-000001.new" / "removed", 0)
        assert list(disk.iterdir()) == []


def test_a_write_error_without_a_name_gets_that_of_the_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "spool", 1) as disk, pytest.raises(DiskFull, match=str(disk)) as found, host_errors():
        write_bytes(disk / "model.npy", b"x" * 2 * MIB)
    assert found.value.folder == disk


def test_a_process_without_descriptors_waits_until_it_has_some(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
        with pytest.raises(HostTrouble, match="Too many open files"):
            check_usable(tmp_path, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    check_usable(tmp_path, 0)


def test_a_worker_that_meets_an_error_of_the_host_has_its_task_suspended(tmp_path: Path) -> None:
    settings = TaskSettings(model="logistic", dataset="digits")
    with small_disk(tmp_path / "spool", 4) as disk:
        subprocess.run(["/bin/mount", "-o", "remount,ro", str(disk)], check=True)
        job = MakeInitialModel(settings=settings, model_spec=ModelSpec.of(settings, (8, 8), 10), out=disk / "round")
        reply = Worker(1).do(job)
    assert isinstance(reply, JobFailed)
    assert (reply.suspends, reply.folder) == (SuspendReason.HOST_TROUBLE, disk)


def test_every_flipped_bit_of_a_small_file_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    content = {"counts": [3, 5, 8], "loss": 0.1, "name": "Änne"}
    write_sealed(path, content)
    assert read_sealed(path) == content
    written = path.read_bytes()
    for place in range(len(written)):
        for bit in range(8):
            spoiled = bytearray(written)
            spoiled[place] ^= 1 << bit
            path.write_bytes(spoiled)
            try:
                assert read_sealed(path) == content
            except DamagedFile as error:
                damaged = error
    assert str(path) in str(damaged)
    for length in range(len(written)):
        path.write_bytes(written[:length])
        with pytest.raises(DamagedFile):
            read_sealed(path)
    path.unlink()
    assert read_sealed(path) is None


def test_a_file_that_is_not_the_recorded_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match=r"model\.npy is damaged: it is missing"):
        check_digest(tmp_path / "model.npy", "0" * 64)
    (tmp_path / "model.npy").write_bytes(b"other")
    with pytest.raises(DamagedFile, match=r"model\.npy is damaged: its digest is"):
        check_digest(tmp_path / "model.npy", "0" * 64)


def test_a_spool_has_one_daemon_at_a_time(tmp_path: Path) -> None:
    first = FolderLock(tmp_path, "fedsim-server", tmp_path)
    with pytest.raises(Unavailable, match=f"another fedsim-server uses the spool {tmp_path}: stop it"):
        FolderLock(tmp_path, "fedsim-server", tmp_path)
    first.close()
    FolderLock(tmp_path, "fedsim-server", tmp_path).close()
