"""Run on a host by `fedsim-fleet push-data`: takes a data set as a whole. Only Python's own library.

Its argument is where the data set lies. Input: a line with a JSON list of [name, size, SHA-256], where the name "" is
the data set itself, a file. Output: a line with the JSON list of the places in that list that are missing, or null if
the data set is there just like this. Then their bytes come, one file after the other. A last line of output says that
the data set has its name: until then the old one is there, whole, and from then on the new one.
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

PIECE = 1 << 20
EXCHANGE, HERE = 2, -100  # RENAME_EXCHANGE, AT_FDCWD


def checked(name: str) -> str:
    """A file's name, which never leads out of the data set."""
    if name.startswith("/") or ".." in name.split("/"):
        sys.exit(f"{name!r} leads out of the data set")
    return name


def present(target: Path) -> dict[str, Path]:
    """The plain files that are there, by their names in the data set."""
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
    """A folder on the same disk that root alone can write: nobody can plant a link in what is made there."""
    device = target.parent.stat().st_dev
    for above in target.parents:
        seen = above.stat()
        if seen.st_dev != device:
            break
        if seen.st_uid == 0 and not seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return above
    sys.exit(f"above {target} no folder on the same disk is root's alone: mount that disk at /var/lib/fedsim")


def take(path: Path, size: int, expected: str) -> None:
    """The next bytes of the input into a new file, verified and on the disk."""
    found, left = hashlib.sha256(), size
    with path.open("xb") as file:
        while left:
            piece = sys.stdin.buffer.read(min(PIECE, left))
            if not piece:
                sys.exit("the sender went away; nothing was changed")
            file.write(piece)
            found.update(piece)
            left -= len(piece)
        file.flush()
        os.fsync(file.fileno())
    if found.hexdigest() != expected:
        sys.exit(f"{path.name} came with another digest: it changed while it was sent; nothing was changed")


def keep(there: Path, path: Path) -> None:
    """A file that is right already, under its new name as well."""
    os.link(there, path, follow_symlinks=False)
    if not stat.S_ISREG(path.lstat().st_mode):
        sys.exit(f"{there} was changed meanwhile: push it again")


def sync(folder: Path) -> None:
    """New names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def own(path: Path) -> None:
    """Read by the group fedsim, changed by root alone, as site.yml does it."""
    shutil.chown(path, "root", "fedsim")
    path.chmod(0o750 if path.is_dir() else 0o640)


def exchange(new: Path, target: Path, old: Path) -> None:
    """Give what is new its name in one step; what had the name goes to `old`."""
    if not os.path.lexists(target):
        new.rename(target)
    elif ctypes.CDLL(None, use_errno=True).renameat2(HERE, os.fsencode(new), HERE, os.fsencode(target), EXCHANGE) == 0:
        new.rename(old)
    else:  # a file system that cannot: two steps, then
        code = ctypes.get_errno()
        if code not in {errno.EINVAL, errno.ENOSYS}:
            raise OSError(code, os.strerror(code), str(target))
        target.rename(old)
        new.rename(target)


def place(target: Path, files: list[Any], missing: set[int]) -> None:
    """Build the data set where nobody looks, and put it into place when it is whole."""
    work = staging(target) / f".pushed-{target.name}"
    shutil.rmtree(work, ignore_errors=True)  # what a push left that was cut off
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
    # The client sees by itself what changes right below its folder, not what lies deeper.
    subprocess.run(["/bin/systemctl", "reload", "fedsim-client*.service"], check=False, capture_output=True)


def say(value: object) -> None:
    """A line for the other side."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main(target: Path) -> None:
    """Take what is missing."""
    files = [(checked(name), size, expected) for name, size, expected in json.loads(sys.stdin.buffer.readline())]
    target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    if target.parent.resolve() != target.parent:
        sys.exit(f"a link leads to {target}: remove it")
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"somebody else pushes to {target.parent}: wait for the end")
    there = present(target)
    right = {name for name, _, expected in files if name in there and digest(there[name]) == expected}
    if right == set(there) and len(right) == len(files):
        say(None)
        return
    missing = [number for number, (name, _, __) in enumerate(files) if name not in right]
    needed = sum(files[number][1] for number in missing)
    if shutil.disk_usage(target.parent).free < needed:
        sys.exit(f"{needed} bytes do not fit below {target.parent}: make room")
    say(missing)
    place(target, files, set(missing))
    say("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
