"""Environments of the platforms and tools that fedsim is compared with, under `build/peers/`, each by itself."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.measure import ROOT
from harness.results import NotHereError

PEERS = ROOT / "build" / "peers"
INSTALL_SECONDS = 1800
START_SECONDS = 300.0
SYSTEM_FOLDERS = "/usr/sbin:/sbin"


def python_with(package: str) -> Path:
    """The Python of a virtual environment with this package and fedsim's release of torch; made when first needed.

    Raises:
        NotHereError: it cannot be installed here, with pip's own words.
    """
    folder = PEERS / package
    python, done = folder / "bin" / "python", folder / ".installed"
    if done.exists():
        return python
    sys.stderr.write(f"  installing {package} in {folder}\n")
    commands = [
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", pinned("torch")],
        [str(python), "-m", "pip", "install", "--quiet", package],
    ]
    for command in commands:
        made = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        if made.returncode:
            errors = [line for line in made.stderr.splitlines() if line.startswith("ERROR")] or made.stderr.splitlines()
            raise NotHereError(f"{package} cannot be installed: {errors[-1] if errors else made.returncode}")
    done.touch()
    return python


def await_port(process: subprocess.Popen[Any], port: int) -> None:
    """Wait until a server of another program answers on loopback, which does not say when it is ready.

    Raises:
        NotHereError: it has ended, or does not answer in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise NotHereError(f"{process.args} did not start: it {'ended' if process.poll() is not None else 'is silent'}")


def version_of(python: Path, package: str) -> str:
    """The version of a package in an environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def pinned(package: str) -> str:
    """The requirement of a package in `constraints.txt`."""
    found = re.search(rf"^{package}==\S+", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return found[0] if found else package


def program(name: str, package: str) -> str:
    """The path of a program; NotHereError names the Debian package that it is in."""
    found = shutil.which(name) or shutil.which(name, path=SYSTEM_FOLDERS) or _unpacked(name, package)
    if found is None:
        raise NotHereError(f"there is no {name} here: apt-get install {package}")
    return found


def _unpacked(name: str, package: str) -> str | None:
    """A program of a Debian package that is unpacked, not installed: so no service of it is started."""
    folder = PEERS / package
    if shutil.which("apt-get") and not folder.exists():
        folder.mkdir(parents=True)
        got = subprocess.run(
            ["apt-get", "download", package],  # noqa: S607 - of this machine
            cwd=folder,
            capture_output=True,
            check=False,
        )
        if got.returncode == 0:
            archive = next(folder.glob("*.deb"))
            subprocess.run(["dpkg", "-x", str(archive), str(folder)], check=True)  # noqa: S607 - of this machine
    return next((str(path) for path in folder.rglob(name) if path.is_file() and "bin" in path.parent.name), None)
