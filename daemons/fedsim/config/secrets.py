"""Locates secrets: an absolute path is a file, a bare name is a credential that systemd passes to the daemon."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def find_secret(path: Path) -> Path:
    """Find the file of a secret that the configuration names.

    A name is looked up in the folders of `$FEDSIM_CREDENTIALS` (separated by colons) or, without it, in
    `$CREDENTIALS_DIRECTORY`. The result must not be cached: a reload may put a newer file into an earlier folder.

    Raises:
        FileNotFoundError: there is no credential of this name; `strerror` says where it was looked for.
    """
    if path.is_absolute():
        return path
    folders = os.environ.get("FEDSIM_CREDENTIALS") or os.environ.get("CREDENTIALS_DIRECTORY", "")
    found = [Path(folder, path) for folder in folders.split(":") if folder]
    for candidate in found:
        if candidate.exists():
            return candidate
    where = f"no such credential in {folders}" if found else "a credential's name, but CREDENTIALS_DIRECTORY is not set"
    raise FileNotFoundError(errno.ENOENT, f"{where}; use an absolute path, or LoadCredential= in the unit", str(path))
