"""The command `fedsim-gather`: downloads everything that hosts install to the control machine, while it has a network.

Ansible packs the wheels that a host lacks, and copies the Debian packages as one archive, because one large file is
transferred much faster than hundreds of small ones. `gathered.json` names them for Ansible, by the hosts' systems.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from fedsim import __version__
from fedsim.command import run_command
from fedsim_fleet.debian import Repository
from fedsim_fleet.releases import DEFAULT, RELEASES, Release
from fedsim_fleet.sbom import write_sbom
from fedsim_fleet.wheels import gather_wheels, version_of

GATHERED = "gathered.json"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("packages"),
    show_default=True,
    help="Folder for the result.",
)
@click.option(
    "--source",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(),
    help="The checkout of fedsim [default: the current folder].",
)
@click.option(
    "--release",
    "releases",
    type=click.Choice(list(RELEASES)),
    multiple=True,
    default=[DEFAULT],
    show_default=True,
    help="A release that hosts run. Can be given multiple times.",
)
@click.option("--torch-index", help="A package index for torch only, such as that of its CPU build.")
@click.option("--mirror", help="Archive of the Debian packages [default: that of the release].")
@click.option("--security-mirror", help="Its security updates [default: those of the release].")
@click.version_option(__version__)
def gather(
    folder: Path,
    source: Path,
    releases: Sequence[str],
    torch_index: str | None,
    mirror: str | None,
    security_mirror: str | None,
) -> None:
    """Gather what hosts install: Python wheels and Debian packages with their dependencies.

    Files that already exist are verified and kept, so a second run is quick.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gathered: dict[str, Any] = {}
    for release in (RELEASES[name] for name in dict.fromkeys(releases)):
        own = folder / release.name
        own.mkdir(exist_ok=True)
        click.echo(f"Python wheels for {release.system} …")
        gather_wheels(release, source, own / "wheels", torch_index)
        click.echo(f"Debian packages for {release.system} …")
        Repository(release, own / "debian", own / "apt", mirror, security_mirror).gather()
        gathered[release.system] = describe(release, own)
        click.echo(f"Bill of materials: {write_sbom(release, own)}")
        for name, paths in (
            ("Python wheels", (own / "wheels").glob("*.whl")),
            ("Debian packages", (own / "debian").glob("*.deb")),
        ):
            sizes = [path.stat().st_size for path in paths]
            click.echo(f"{len(sizes)} {name}, {sum(sizes) / 1e6:.0f} MB")
    version = version_of(own / "wheels")
    contents = {"version": version, "releases": gathered}
    (folder / GATHERED).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    click.echo(f"fedsim {version} is gathered in {folder}.")


def describe(release: Release, folder: Path) -> dict[str, Any]:
    """What was gathered for a release in its folder, for Ansible; packs the Debian packages."""
    wheels = folder / "wheels"
    for archive in folder.glob(f"{wheels.name}-*.tar"):
        archive.unlink()  # packed by Ansible from what was gathered before
    return {
        "folder": release.name,
        "wheels": {"digest": digest_of(sorted(wheels.glob("*.whl")))},
        "debian": pack(folder / "debian", "*.deb", "Packages"),
    }


def pack(folder: Path, *patterns: str) -> dict[str, str]:
    """Pack a folder's files into an archive next to the folder, if they have changed.

    Returns:
        The archive's file name, and a digest of its content.
    """
    # In the order of the patterns: the last file to be unpacked shows that all are.
    files = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    digest = digest_of(files)
    name = f"{folder.name}-{digest[:16]}.tar"
    archive = folder.with_name(name)
    if not archive.exists():
        for old in folder.parent.glob(f"{folder.name}-*.tar"):
            old.unlink()
        unfinished = archive.with_suffix(".unfinished")
        with tarfile.open(unfinished, "w") as tar:
            for path in files:
                tar.add(path, path.name, filter=_anonymous)
        unfinished.rename(archive)
    return {"archive": name, "digest": digest}


def digest_of(files: Sequence[Path]) -> str:
    """A digest of the names and contents of files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _anonymous(item: tarfile.TarInfo) -> tarfile.TarInfo:
    """Make an entry world-readable, without the user of the control machine."""
    item.uid = item.gid = 0
    item.uname = item.gname = "root"
    item.mode = 0o644
    return item


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(gather, "fedsim-gather", arguments)
