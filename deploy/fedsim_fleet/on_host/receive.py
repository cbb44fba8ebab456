"""Run on a host by `fedsim-fleet push-data`: takes a data set's files. Only Python's own library.

Its argument is where the data set lies. Input: a line with a JSON list of [name, size, SHA-256], where the name "" is
the data set itself, a file. Output: a line with the JSON list of the places in that list that are missing. Then their
bytes come, one file after the other; and a last line says how many were put into place. A file gets its name only when
all have come and their digests are right.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

PIECE = 1 << 20


def place(target: Path, name: str) -> Path:
    """Where a file lies. A name never leads out of the data set."""
    if name.startswith("/") or ".." in name.split("/"):
        sys.exit(f"{name!r} leads out of the data set")
    return target / name if name else target


def digest(path: Path) -> str:
    """SHA-256 of a file, or nothing."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def take(path: Path, size: int, expected: str) -> Path:
    """A file's bytes under a temporary name beside it, which is returned."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.coming")
    found, left = hashlib.sha256(), size
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o640)
    with os.fdopen(descriptor, "wb") as file:
        while left:
            piece = sys.stdin.buffer.read(min(PIECE, left))
            if not piece:
                temporary.unlink()
                sys.exit("the sender went away")
            file.write(piece)
            found.update(piece)
            left -= len(piece)
        file.flush()
        os.fsync(file.fileno())
    if found.hexdigest() != expected:
        temporary.unlink()
        sys.exit(f"{path}: the bytes that came have another digest")
    return temporary


def own(path: Path) -> None:
    """Read by the group fedsim, changed by root alone, as site.yml does it."""
    shutil.chown(path, "root", "fedsim")
    path.chmod(0o750 if path.is_dir() else 0o640)


def say(value: object) -> None:
    """A line for the other side."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main(target: Path) -> None:
    """Take what is missing."""
    files = [(place(target, name), size, found) for name, size, found in json.loads(sys.stdin.buffer.readline())]
    missing = [number for number, (path, _, expected) in enumerate(files) if digest(path) != expected]
    target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    needed = sum(files[number][1] for number in missing)
    if shutil.disk_usage(target.parent).free < needed:
        sys.exit(f"{needed} bytes do not fit below {target.parent}: make room")
    say(missing)
    came = [(take(*files[number]), files[number][0]) for number in missing]
    for temporary, path in came:
        own(temporary)
        temporary.rename(path)
    if target.is_dir():
        for folder in [target, *(one for one in target.rglob("*") if one.is_dir())]:
            own(folder)
    say(len(came))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
