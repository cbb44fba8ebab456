"""Where secrets lie: an absolute path is a file, a bare name is a credential that systemd hands to the daemon."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def find_secret(path: Path) -> Path:
    """The file of a secret from the configuration.

    A name is looked up in the folders of `$FEDSIM_CREDENTIALS` (separated by colons), else in
    `$CREDENTIALS_DIRECTORY`. It is looked up anew each time, as a reload may bring a newer one into an earlier folder.

    Raises:
        FileNotFoundError: there is no credential of this name; its `strerror` says where it was looked for.
    """
    if path.is_absolute():
        return path
    folders = os.environ.get("FEDSIM_CREDENTIALS") or os.environ.get("CREDENTIALS_DIRECTORY", "")
    found = [Path(folder, path) for folder in folders.split(":") if folder]
    for candidate in found:
        if candidate.exists():
            return candidate
    where = f"no such credential in {folders}" if found else "a credential's name, but no CREDENTIALS_DIRECTORY is set"
    raise FileNotFoundError(errno.ENOENT, f"{where}; name an absolute path, or give it with LoadCredential=", str(path))
