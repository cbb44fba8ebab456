"""Gathers Python wheels, fedsim's own and its pinned dependencies, for hosts without access to a package index.

pip resolves them once, here, under constraints.txt, for the Python of the hosts, which this machine need not have. The
requirements file records their digests, and a host installs exactly these (`pip install --require-hashes --no-index`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PathDistribution
from pathlib import Path
from zipfile import Path as ZipPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from fedsim.errors import Unavailable
from fedsim_fleet.debian import run
from fedsim_fleet.releases import Release

REQUIREMENTS = "requirements.txt"
RECIPE = "recipe"
# The distribution is called fedsim-lab because fedsim is another project on PyPI.
_OWN_WHEEL = "fedsim_lab-*.whl"
_EXTRAS = "openid,images"  # which `web.yml: openid` and the data format `image_folder` need
_PURPOSE = "gathering Python wheels"
# The earliest time that a zip file can store, so that the same source gives the same wheel.
_EPOCH = "315532800"


def gather_wheels(release: Release, source: Path, folder: Path, index: str | None = None) -> None:
    """Gather the wheels of fedsim in `source` and of its dependencies in `folder`; only what is not there is fetched.

    Args:
        release: what the hosts run.
        source: a checkout, with pyproject.toml and constraints.txt.
        folder: will contain exactly these wheels and their requirements file.
        index: address of a package index for torch only; None for pip's default.

    Raises:
        Unavailable: pip failed; the text has its output.
    """
    with tempfile.TemporaryDirectory(prefix="fedsim-gather-") as name:
        fresh = Path(name)
        own = _build(source, fresh / "own")
        constraints = source / "constraints.txt"
        origin = f"torch from {index or 'the default index'}"
        recipe = f"{origin}\n{_digest(own.read_bytes(), constraints.read_bytes(), _EXTRAS.encode())}\n"
        previous = (folder / RECIPE).read_text(encoding="utf-8") if verified(folder) else ""
        if previous == recipe:
            return
        wheels = fresh / "wheels"
        reused = ("--find-links", folder) if previous.startswith(f"{origin}\n") else ()
        platforms = [part for tag in release.platforms() for part in ("--platform", tag)]
        download = ("download", "--only-binary=:all:", "--python-version", release.python, *platforms,
                    "--constraint", constraints, *reused, "--find-links", wheels, "--dest", wheels)  # fmt: skip
        wanted = [f"{own}[{_EXTRAS}]"]
        try:
            _pip(*download, "--no-index", *wanted)
        except Unavailable:  # something is new
            if index:
                _pip(*download, "--no-deps", "--index-url", index, "torch")
            _pip(*download, *wanted)
        while more := sorted(lacking(wheels, release.python)):
            wanted += more
            _pip(*download, *wanted)
        (wheels / REQUIREMENTS).write_text(requirements_of(wheels), encoding="utf-8")
        (wheels / RECIPE).write_text(recipe, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(wheels, folder)


def lacking(folder: Path, python: str) -> set[str]:
    """The dependencies that are missing among the wheels of a folder.

    pip evaluates conditions such as `python_version >= "3.12"` for the Python that runs it, not for that of the hosts.
    """
    present = {canonicalize_name(parse_wheel_filename(wheel.name)[0]) for wheel in folder.glob("*.whl")}
    missing = set()
    for wheel in folder.glob("*.whl"):
        extras = ("", *_EXTRAS.split(",")) if wheel.match(_OWN_WHEEL) else ("",)
        around = [{"python_version": python, "python_full_version": f"{python}.0", "extra": extra} for extra in extras]
        missing |= {
            f"{needed.name}{needed.specifier}"
            for needed in _dependencies(wheel)
            if canonicalize_name(needed.name) not in present
            and (not needed.marker or any(map(needed.marker.evaluate, around)))
        }
    return missing


def _dependencies(wheel: Path) -> Iterator[Requirement]:
    contents = ZipPath(wheel)
    (metadata,) = (path for path in contents.iterdir() if path.name.endswith(".dist-info"))
    for line in PathDistribution(metadata).requires or ():
        yield Requirement(line)


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
