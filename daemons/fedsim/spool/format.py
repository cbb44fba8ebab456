"""The number of a state directory's format, in its file `format`: a daemon refuses an older or a newer one.

fedsim 0.1 wrote no number: a directory that it used has format 1.
"""

from __future__ import annotations

from pathlib import Path

from fedsim.errors import EX_CONFIG, FedsimError
from fedsim.spool.durable import make_folder, write_bytes

FORMAT = 2
FORMAT_FILE = "format"
# Folders that a daemon of 0.1 created before anything else.
_FOLDERS_OF_0_1 = ("hello", "initparam", "testset", "globalparam", "localparam", "stop")


class WrongFormat(FedsimError):  # noqa: N818
    """A state directory cannot be used by this version. A restart does not help."""

    exit_code = EX_CONFIG


def read_format(folder: Path) -> int | None:
    """The format of a state directory; None if it holds no state yet.

    Raises:
        WrongFormat: the file with the number is damaged.
    """
    # In this order: a process that creates a directory writes the number before it creates anything else.
    used = any((folder / name).is_dir() for name in _FOLDERS_OF_0_1)
    try:
        text = (folder / FORMAT_FILE).read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return 1 if used else None
    if not (text.isascii() and text.isdecimal()):
        raise WrongFormat(f"{folder / FORMAT_FILE} does not hold a number: restore the directory from a backup")
    return int(text)


def write_format(folder: Path, number: int = FORMAT) -> None:
    """Durably record that the directory has this format."""
    write_bytes(folder / FORMAT_FILE, f"{number}\n".encode())


def check_format(folder: Path) -> None:
    """Check that a state directory can be used, before anything else in it is read; a new one gets the number.

    Raises:
        WrongFormat: it has another format; says what to do.
    """
    found = read_format(folder)
    if found is None:
        make_folder(folder)
        write_format(folder)
        return
    refuse_newer(folder, found)
    if found < FORMAT:
        raise WrongFormat(
            f"{folder} has format {found}, written by an older fedsim; this version needs format {FORMAT}: run "
            f"upgrade.yml, or stop the daemons of this directory and run `fedsim-migrate {folder}` as their user"
        )


def refuse_newer(folder: Path, found: int) -> None:
    """Raise `WrongFormat` for a format that only a newer version reads."""
    if found > FORMAT:
        raise WrongFormat(
            f"{folder} has format {found}, written by a newer fedsim; this version reads format {FORMAT}: "
            "install that version again, or restore a backup"
        )
