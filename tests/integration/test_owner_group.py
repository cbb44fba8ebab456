"""The group of a node's owner: the role creates it with the folder of the socket, and only its members can connect.

The role's script and systemd's own programs run in a mount namespace, in which /etc is a copy and /run, /opt and
/var/lib are empty.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from presence import missing

ROOT = Path(__file__).parents[2]
SELECT = ROOT / "ansible" / "roles" / "common" / "files" / "select.sh"
ENTER = """
work=$(mktemp --directory --tmpdir="$1" host.XXXXXX)
mount -t tmpfs -o mode=755 tmpfs "$work"
cp --archive /etc "$work/etc"
for folder in /run /opt /var/lib; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
mount --bind "$work/etc" /etc
mkdir -p /etc/sysusers.d /etc/tmpfiles.d /opt/fedsim
cp "$2/systemd/sysusers.d/fedsim.conf" /etc/sysusers.d/
cp "$2/systemd/tmpfiles.d/fedsim.conf" /etc/tmpfiles.d/
useradd --no-create-home ada
useradd --no-create-home grace
"""
# A node's daemon as its user, and then requests as these users; prints what each was answered.
REQUESTS = """
import os, pwd, sys
from pathlib import Path

from fedsim.client.owner_socket import OwnerSocket, PendingQuery, ask
from fedsim.errors import Unavailable

path = Path("/run/fedsim-owner/client.sock")


def become(user):
    known = pwd.getpwnam(user)
    os.initgroups(user, known.pw_gid)
    os.setgid(known.pw_gid)
    os.setuid(known.pw_uid)


def child(serve):
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(readable)
            serve(writable)
            code = 0
        finally:
            os._exit(code)
    os.close(writable)
    return pid, readable


def daemon(ready):
    become("fedsim")
    OwnerSocket(path, "hospital", Path("/var/lib/fedsim/client/audit.jsonl")).open()
    os.write(ready, b"ready")
    os.read(end[0], 1)


def member(user):
    def request(ready):
        become(user)
        try:
            answer = ask(path, PendingQuery())["node"]
        except Unavailable as error:
            answer = str(error)
        os.write(ready, answer.encode())

    return request


end = os.pipe()
pid, ready = child(daemon)
assert os.read(ready, 5) == b"ready"
for user in sys.argv[1:]:
    asked, answer = child(member(user))
    print(user, os.read(answer, 1000).decode())
    os.waitpid(asked, 0)
status = path.stat()
print(path.owner(), path.group(), oct(status.st_mode & 0o7777))
os.write(end[1], b".")
os.waitpid(pid, 0)
"""


def on_a_host(folder: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    if os.geteuid() != 0 or any(shutil.which(name) is None for name in ("systemd-sysusers", "unshare", "gpasswd")):
        missing("needs root and systemd: it creates users in a mount namespace")
    script = "\n".join((ENTER, *commands))
    return subprocess.run(
        ["/usr/bin/unshare", "--mount", "/bin/sh", "-ec", script, "sh", folder, ROOT, SELECT, REQUESTS],
        check=False, capture_output=True, text=True,
    )  # fmt: skip


REQUEST = f'{sys.executable} -c "$4" ada grace root'
DENIED = "this user may not connect to /run/fedsim-owner/client.sock: they must be in the group that owns it"


@pytest.mark.parametrize(
    ("owners", "answers"),
    [
        ("ada", {"ada": "hospital", "grace": DENIED}),
        ("ada,grace", {"ada": "hospital", "grace": "hospital"}),
        ("''", {"ada": DENIED, "grace": DENIED}),
        ("", {"ada": DENIED, "grace": "hospital"}),  # not named in the inventory: the group is left as it is
    ],
)
def test_those_whom_the_inventory_names_are_answered_and_no_one_else(
    tmp_path: Path, owners: str, answers: dict[str, str]
) -> None:
    select = f"sh $3 1.0 {owners}"
    done = on_a_host(
        tmp_path,
        "sh $3 1.0 > /dev/null",
        "gpasswd --add grace fedsim-owner > /dev/null",
        f'echo "first: $({select})"',
        f'echo "second: $({select})"',
        "stat --format='%U %G %a' /run/fedsim-owner",
        REQUEST,
    )
    assert done.returncode == 0, done.stderr
    first, second, folder, *requests, socket = done.stdout.splitlines()
    assert (first.endswith("changed"), second) == (owners != "", "second: ")
    assert folder == "fedsim fedsim-owner 2750"
    assert socket == "fedsim fedsim-owner 0o660"
    assert dict(line.split(" ", 1) for line in requests) == {**answers, "root": "hospital"}


def test_a_user_who_does_not_exist_is_named_and_no_member_is_changed(tmp_path: Path) -> None:
    done = on_a_host(
        tmp_path, "sh $3 1.0 ada", "sh $3 1.0 grace,lin || echo refused", "getent group fedsim-owner | cut -d : -f 4"
    )
    assert done.stdout.splitlines()[-2:] == ["refused", "ada"]
    assert "The user lin, named by fedsim_owners, does not exist on this host" in done.stderr
