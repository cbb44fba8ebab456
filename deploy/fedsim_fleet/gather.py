"""The command `fedsim-gather`: downloads everything that hosts install to the control machine, while it has a network.

Ansible copies two archives to the hosts and unpacks them there, because one large file is transferred much faster than
hundreds of small ones. `gathered.json` names the archives for Ansible.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import click

from fedsim import __version__
from fedsim.command import run_command
from fedsim_fleet.debian import MIRROR, SECURITY_MIRROR, Repository
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
@click.option("--torch-index", help="A package index for torch only, such as that of its CPU build.")
@click.option("--mirror", default=MIRROR, show_default=True, help="Debian's archive.")
@click.option("--security-mirror", default=SECURITY_MIRROR, show_default=True, help="Its security updates.")
@click.version_option(__version__)
def gather(folder: Path, source: Path, torch_index: str | None, mirror: str, security_mirror: str) -> None:
    """Gather what hosts install: Python wheels and Debian packages with their dependencies.

    Files that already exist are verified and kept, so a second run is quick.
    """
    wheels, debian = folder / "wheels", folder / "debian"
    folder.mkdir(parents=True, exist_ok=True)
    click.echo("Python wheels …")
    gather_wheels(source, wheels, torch_index)
    click.echo("Debian packages …")
    Repository(debian, folder / "apt", mirror, security_mirror).gather()
    gathered_files = {
        "version": version_of(wheels),
        "wheels": pack(wheels, "*.whl", "requirements.txt"),
        "debian": pack(debian, "*.deb", "Packages"),
    }
    (folder / GATHERED).write_text(json.dumps(gathered_files, indent=2) + "\n", encoding="utf-8")
    for name, paths in (("Python wheels", wheels.glob("*.whl")), ("Debian packages", debian.glob("*.deb"))):
        sizes = [path.stat().st_size for path in paths]
        click.echo(f"{len(sizes)} {name}, {sum(sizes) / 1e6:.0f} MB")
    click.echo(f"fedsim {gathered_files['version']} is gathered in {folder}.")


def pack(folder: Path, *patterns: str) -> dict[str, str]:
    """Pack a folder's files into an archive next to the folder, if they have changed.

    Returns:
        The archive's file name, and a digest of its content.
    """
    files = sorted(path for pattern in patterns for path in folder.glob(pattern))
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    name = f"{folder.name}-{digest.hexdigest()[:16]}.tar"
    archive = folder.with_name(name)
    if not archive.exists():
        for old in folder.parent.glob(f"{folder.name}-*.tar"):
            old.unlink()
        unfinished = archive.with_suffix(".unfinished")
        with tarfile.open(unfinished, "w") as tar:
            for path in files:
                tar.add(path, path.name, filter=_anonymous)
        unfinished.rename(archive)
    return {"archive": name, "digest": digest.hexdigest()}


def _anonymous(item: tarfile.TarInfo) -> tarfile.TarInfo:
    """Make an entry world-readable, without the user of the control machine."""
    item.uid = item.gid = 0
    item.uname = item.gname = "root"
    item.mode = 0o644
    return item


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(gather, "fedsim-gather", arguments)
