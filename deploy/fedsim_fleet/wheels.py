"""Gathers Python wheels, fedsim's own and its pinned dependencies, for hosts without access to a package index.

pip resolves them once, here, under constraints.txt. The requirements file records their digests, and a host installs
exactly these (`pip install --require-hashes --no-index`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from fedsim.errors import BadInput
from fedsim_fleet.debian import run

REQUIREMENTS = "requirements.txt"
RECIPE = "recipe"
# The distribution is called fedsim-lab because fedsim is another project on PyPI.
_OWN_WHEEL = "fedsim_lab-*.whl"
PYTHON = (3, 11)  # of Debian 12
_PURPOSE = "gathering Python wheels"
# The earliest time that a zip file can store, so that the same source gives the same wheel.
_EPOCH = "315532800"


def gather_wheels(source: Path, folder: Path, index: str | None = None) -> None:
    """Gather the wheels of fedsim in `source` and of its dependencies in `folder`, unless it is up to date.

    Args:
        source: a checkout, with pyproject.toml and constraints.txt.
        folder: will contain exactly these wheels and their requirements file.
        index: address of a package index for torch only; None for pip's default.

    Raises:
        BadInput: this Python version is not that of the hosts.
        Unavailable: pip failed; the text has its output.
    """
    if sys.version_info[:2] != PYTHON:
        raise BadInput(f"wheels for Debian 12 must be gathered with Python {PYTHON[0]}.{PYTHON[1]}, not {sys.version}")
    with tempfile.TemporaryDirectory(prefix="fedsim-gather-") as name:
        fresh = Path(name)
        own = _build(source, fresh / "own")
        constraints = source / "constraints.txt"
        recipe = _digest(own.read_bytes(), constraints.read_bytes(), str(index).encode())
        if verified(folder) and (folder / RECIPE).read_text(encoding="utf-8") == recipe:
            return
        wheels = fresh / "wheels"
        if index:
            pins = constraints.read_text(encoding="utf-8").split()
            torch = next(pin for pin in pins if pin.startswith("torch=="))
            _pip("wheel", "--no-deps", "--index-url", index, "--wheel-dir", wheels, torch)
        _pip("wheel", "--constraint", constraints, "--find-links", wheels, "--wheel-dir", wheels, own)
        (wheels / REQUIREMENTS).write_text(requirements_of(wheels), encoding="utf-8")
        (wheels / RECIPE).write_text(recipe, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(wheels, folder)


def verified(folder: Path) -> bool:
    """Whether the folder contains exactly the wheels of the requirements file, with their digests."""
    try:
        return (folder / REQUIREMENTS).read_text(encoding="utf-8") == requirements_of(folder)
    except FileNotFoundError:
        return False


def version_of(folder: Path) -> str:
    """The version of the gathered fedsim."""
    wheel = next(folder.glob(_OWN_WHEEL))
    return wheel.name.split("-")[1]


def _build(source: Path, folder: Path) -> Path:
    folder.mkdir()
    # Build outside the source folder, where an older build may have left modules that no longer exist.
    elsewhere = folder / "build.cfg"
    elsewhere.write_text(
        f"[build]\nbuild_base = {folder / 'build'}\n[egg_info]\negg_base = {folder}\n", encoding="utf-8"
    )
    around = {"SOURCE_DATE_EPOCH": _EPOCH, "DIST_EXTRA_CONFIG": str(elsewhere)}
    _pip("wheel", "--no-deps", "--wheel-dir", folder, source, **around)
    return next(folder.glob(_OWN_WHEEL))


def _pip(*arguments: str | Path, **around: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    run(command, _PURPOSE, {**os.environ, **around})


def requirements_of(folder: Path) -> str:
    """The requirements file: each wheel with its version and digest, in order."""
    lines = []
    for wheel in sorted(folder.glob("*.whl")):
        name, version = re.split("-", wheel.name)[:2]
        lines.append(f"{name}=={version} --hash=sha256:{_digest(wheel.read_bytes())}\n")
    return "".join(lines)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
