"""The scripts of the timed backup, on a folder of this machine with a database that is a file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from presence import missing

ROLE = Path(__file__).parents[2] / "ansible" / "roles" / "backup"


class ServerHost:
    """The state of a server, and programs in place of those of its host; each backup is a day later."""

    def __init__(self, folder: Path) -> None:
        self.state, self.backups, self.programs = folder / "state", folder / "backups", folder / "bin"
        self.checkpoints = self.state / "server" / "checkpoints"
        self.checkpoints.mkdir(parents=True)
        (self.checkpoints / "round-1.npy").write_bytes(b"a model")
        self.programs.mkdir()
        self.day = 0
        self.program("mariadb-dump", "echo 'CREATE TABLE tasks'")

    def program(self, name: str, line: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def back_up(self, keep: int, recipient: str = "") -> int:
        self.day += 1
        self.program("date", f"echo 2026-11-{self.day:02}-023000")
        path = f"{self.programs}:{os.environ['PATH']}"
        command = ["/bin/sh", ROLE / "files" / "rotate.sh", self.backups, str(keep), recipient]
        return subprocess.run(command, check=False, env={"PATH": path, "FEDSIM_STATE": str(self.state)}).returncode

    def kept(self) -> list[str]:
        return sorted(path.name for path in self.backups.iterdir())


@pytest.fixture
def host(tmp_path: Path) -> ServerHost:
    return ServerHost(tmp_path)


def test_the_newest_backups_are_kept_and_whole(host: ServerHost, tmp_path: Path) -> None:
    assert [host.back_up(keep=2) for _ in range(4)] == [0, 0, 0, 0]
    assert host.kept() == ["fedsim-2026-11-03-023000.tar", "fedsim-2026-11-04-023000.tar"]
    newest = host.backups / host.kept()[-1]
    assert newest.stat().st_mode & 0o777 == 0o600, "it contains the accounts"
    shutil.unpack_archive(newest, tmp_path / "restored")
    assert (tmp_path / "restored" / "checkpoints" / "round-1.npy").read_bytes() == b"a model"
    assert (tmp_path / "restored" / "database.sql").read_text() == "CREATE TABLE tasks\n"
    assert sorted(path.name for path in host.state.iterdir()) == ["server"], "nothing is left of its work"


def test_a_backup_that_fails_deletes_no_older_one(host: ServerHost) -> None:
    assert host.back_up(keep=1) == 0
    host.program("mariadb-dump", "exit 2")
    assert host.back_up(keep=1) != 0
    host.program("mariadb-dump", "true")
    host.program("sha256sum", "exit 1")
    assert host.back_up(keep=1) != 0
    assert host.kept() == ["fedsim-2026-11-01-023000.tar"]
    assert sorted(path.name for path in host.state.iterdir()) == ["server"]


def test_systemd_accepts_service_and_timer(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        missing("systemd-analyze is not installed: apt-get install systemd")
    for name in ("service", "timer"):
        text = (ROLE / "templates" / f"fedsim_backup.{name}.j2").read_text(encoding="utf-8")
        text = text.replace("{{ fedsim_backup_time }}", "*-*-* 02:30:00").replace(
            "/opt/fedsim/backup/rotate.sh", "/bin/true"
        )
        text = (
            re.sub(r"{{ fedsim_backup_folder.*?}}", "/var/backups", text)
            .replace("{{ fedsim_backup_keep }}", "7")
            .replace("{{ fedsim_backup_recipient }}", "")
        )
        (tmp_path / f"fedsim_backup.{name}").write_text(text.replace("{{ ansible_managed }}", "managed"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", tmp_path / "fedsim_backup.timer"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def age(program: str, *arguments: str | Path) -> bytes:
    """Run a program of age; returns its output."""
    found = shutil.which(program)
    if found is None:
        missing("age is not installed: apt-get install age")
    return subprocess.run([found, *arguments], check=True, capture_output=True).stdout


def key(folder: Path, name: str) -> tuple[Path, str]:
    """An identity of age and its public key."""
    age("age-keygen", "--output", folder / name)
    return folder / name, age("age-keygen", "-y", folder / name).decode().strip()


def reencrypt(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["/bin/bash", ROLE / "files" / "reencrypt.sh", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def encrypt(*arguments: str | Path) -> int:
    return subprocess.run(["/bin/sh", ROLE / "files" / "encrypt.sh", *arguments], check=False).returncode


def test_a_folder_is_encrypted_as_an_archive_and_stays(tmp_path: Path) -> None:
    identity, recipient = key(tmp_path, "owner")
    (tmp_path / "guarded").mkdir()
    (tmp_path / "guarded" / "digits.npz").write_bytes(b"a division")
    assert encrypt(recipient, tmp_path / "guarded", tmp_path / "sent") == 0
    assert (tmp_path / "sent").stat().st_mode & 0o777 == 0o600
    age("age", "--decrypt", "--identity", identity, "--output", tmp_path / "plain.tar", tmp_path / "sent")
    shutil.unpack_archive(tmp_path / "plain.tar", tmp_path / "restored")
    assert (tmp_path / "restored" / "guarded" / "digits.npz").read_bytes() == b"a division"
    assert (tmp_path / "guarded" / "digits.npz").exists()
    assert sorted(path.name for path in tmp_path.glob("sent*")) == ["sent"]


def test_what_cannot_be_encrypted_is_kept_and_leaves_nothing_behind(tmp_path: Path) -> None:
    _, recipient = key(tmp_path, "owner")
    (tmp_path / "b.tar").write_bytes(b"plain text")
    for given, source in (("age1notakey", tmp_path / "b.tar"), (recipient, tmp_path / "none.tar")):
        assert encrypt(given, source, tmp_path / "sent", "remove") != 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "owner"]


def test_nothing_else_encrypts() -> None:
    files = [path for path in (ROLE.parents[1]).rglob("*") if path.is_file() and path.suffix in {".sh", ".yml", ".j2"}]
    encrypting = [path.name for path in files if "age --encrypt" in path.read_text(encoding="utf-8")]
    assert encrypting == ["encrypt.sh"]


def test_a_backup_is_encrypted_to_the_owners_key_and_nothing_else_is_kept(host: ServerHost, tmp_path: Path) -> None:
    identity, recipient = key(tmp_path, "owner")
    assert host.back_up(keep=2) == 0  # before the owner had a key
    assert [host.back_up(2, recipient), host.back_up(2, recipient)] == [0, 0]
    assert host.kept() == ["fedsim-2026-11-02-023000.tar.age", "fedsim-2026-11-03-023000.tar.age"]
    newest = host.backups / host.kept()[-1]
    assert newest.stat().st_mode & 0o777 == 0o600
    assert b"a model" not in newest.read_bytes()
    assert sorted(path.name for path in host.state.iterdir()) == ["server"]
    plain = tmp_path / "plain.tar"
    age("age", "--decrypt", "--identity", identity, "--output", plain, newest)
    shutil.unpack_archive(plain, tmp_path / "restored")
    assert (tmp_path / "restored" / "checkpoints" / "round-1.npy").read_bytes() == b"a model"


def test_a_backup_that_cannot_be_encrypted_deletes_no_older_one(host: ServerHost, tmp_path: Path) -> None:
    _, recipient = key(tmp_path, "owner")
    assert host.back_up(1, recipient) == 0
    assert host.back_up(1, "age1notakey") != 0
    assert host.kept()[-1:] == ["fedsim-2026-11-01-023000.tar.age"]
    assert sorted(path.name for path in host.state.iterdir()) == ["server"]


def test_a_restore_passes_the_backup_on_to_a_key_of_the_host_alone(tmp_path: Path) -> None:
    owner, recipient = key(tmp_path, "owner")
    other, to_host = key(tmp_path, "host")
    backup, sent = tmp_path / "b.tar", tmp_path / "sent"
    backup.write_bytes(b"plain text " * 100_000)
    encrypted = tmp_path / "b.tar.age"
    assert encrypt(recipient, backup, encrypted, "remove") == 0
    assert not backup.exists()
    assert reencrypt(encrypted, owner).returncode == 0  # it is whole
    assert reencrypt(encrypted, owner, to_host, sent).returncode == 0
    assert age("age", "--decrypt", "--identity", other, sent) == b"plain text " * 100_000
    assert "does not exist: use -e backup=FILE -e identity=FILE" in reencrypt(encrypted, tmp_path / "none").stderr
    assert reencrypt(encrypted, other).returncode != 0
    damaged = bytearray(encrypted.read_bytes())
    damaged[-100] ^= 1
    encrypted.write_bytes(damaged)
    for arguments in ((), (to_host, sent)):
        failed = reencrypt(encrypted, owner, *arguments)
        assert failed.returncode != 0
        assert "is damaged, or" in failed.stderr
