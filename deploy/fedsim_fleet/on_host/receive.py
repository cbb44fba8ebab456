"""Run on a host by `fedsim-fleet push-data`: receives a data set and replaces the old one. Only the standard library.

The argument is the path of the data set. Input: a line with a JSON list of [name, size, SHA-256]; the name is empty if
the data set is a single file. Output: a line "fedsim: " with the JSON list of the indices of missing files, or null if
the data set is up to date. Then the content of these files follows on the input. A last line of output confirms that
the data set was replaced, which happens in one step.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

INSTALLED = Path("/opt/fedsim/current")
PIECE = 1 << 20
EXCHANGE, HERE = 2, -100  # RENAME_EXCHANGE, AT_FDCWD


def checked(name: str) -> str:
    """Return the file's name if it stays inside the data set."""
    if name.startswith("/") or ".." in name.split("/"):
        sys.exit(f"{name!r} is outside of the data set")
    return name


def present(target: Path) -> dict[str, Path]:
    """The existing regular files, by their names in the data set."""
    if target.is_symlink():
        return {}
    if target.is_file():
        return {"": target}
    inside = (path for path in target.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(target)): path for path in inside}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def staging(target: Path) -> Path:
    """A folder on the same disk that only root can write, so that no other user can place a link in it."""
    device = target.parent.stat().st_dev
    for above in target.parents:
        seen = above.stat()
        if seen.st_dev != device:
            break
        if seen.st_uid == 0 and not seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return above
    sys.exit(f"no folder above {target} on its disk is writable by root only: mount that disk at /var/lib/fedsim")


def take(path: Path, size: int, expected: str) -> None:
    """Write the next bytes of the input durably to a new file, and verify them."""
    found, left = hashlib.sha256(), size
    with path.open("xb") as file:
        while left:
            piece = sys.stdin.buffer.read(min(PIECE, left))
            if not piece:
                sys.exit("the connection was lost; nothing was changed")
            file.write(piece)
            found.update(piece)
            left -= len(piece)
        file.flush()
        os.fsync(file.fileno())
    if found.hexdigest() != expected:
        sys.exit(f"{path.name} arrived with a different digest: it changed while it was sent; nothing was replaced")


def keep(there: Path, path: Path) -> None:
    """Link an existing file into the new data set."""
    os.link(there, path, follow_symlinks=False)
    if not stat.S_ISREG(path.lstat().st_mode):
        sys.exit(f"{there} was changed in the meantime: push it again")


def sync(folder: Path) -> None:
    """Make new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def own(path: Path) -> None:
    """Let the group fedsim read and only root write, as site.yml does."""
    shutil.chown(path, "root", "fedsim")
    path.chmod(0o750 if path.is_dir() else 0o640)


def exchange(new: Path, target: Path, old: Path) -> None:
    """Replace `target` by `new` in one step; the previous content moves to `old`."""
    if not os.path.lexists(target):
        new.rename(target)
    elif ctypes.CDLL(None, use_errno=True).renameat2(HERE, os.fsencode(new), HERE, os.fsencode(target), EXCHANGE) == 0:
        new.rename(old)
    else:  # not supported by the file system: two steps
        code = ctypes.get_errno()
        if code not in {errno.EINVAL, errno.ENOSYS}:
            raise OSError(code, os.strerror(code), str(target))
        target.rename(old)
        new.rename(target)


def place(target: Path, files: list[Any], missing: set[int]) -> None:
    """Build the data set in the staging folder, and replace the old one when it is complete."""
    work = staging(target) / f".pushed-{target.name}"
    shutil.rmtree(work, ignore_errors=True)  # left by an interrupted push
    work.mkdir(mode=0o700)
    try:
        new = work / "new"
        for number, (name, size, expected) in enumerate(files):
            path = new / name if name else new
            path.parent.mkdir(parents=True, exist_ok=True)
            if number in missing:
                take(path, size, expected)
            else:
                keep(target / name if name else target, path)
        for path in [new, *(new.rglob("*") if new.is_dir() else [])]:
            own(path)
            if path.is_dir():
                sync(path)
        exchange(new, target, work / "old")
        sync(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    # The client watches its data folder, but not the folders below it.
    subprocess.run(["/bin/systemctl", "reload", "fedsim-client*.service"], check=False, capture_output=True)


def say(value: object) -> None:
    """Print a line for the sender, who ignores what a shell's profile has printed."""
    sys.stdout.write(f"\nfedsim: {json.dumps(value)}\n")
    sys.stdout.flush()


def main(target: Path) -> None:
    """Receive the missing files."""
    if not INSTALLED.exists():
        sys.exit("fedsim is not installed on this host yet: run site.yml, then push again")
    files = [(checked(name), size, expected) for name, size, expected in json.loads(sys.stdin.buffer.readline())]
    target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    if target.parent.resolve() != target.parent:
        sys.exit(f"{target} or a folder above it is a symbolic link: remove it")
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another push to {target.parent} is running: wait until it ends")
    there = present(target)
    right = {name for name, _, expected in files if name in there and digest(there[name]) == expected}
    if right == set(there) and len(right) == len(files):
        say(None)
        return
    missing = [number for number, (name, _, __) in enumerate(files) if name not in right]
    needed = sum(files[number][1] for number in missing)
    if shutil.disk_usage(target.parent).free < needed:
        sys.exit(f"{needed} bytes do not fit below {target.parent}: free disk space")
    say(missing)
    place(target, files, set(missing))
    say("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
