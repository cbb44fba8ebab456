"""Gathers Debian packages and their dependencies in a repository, for hosts without access to a mirror.

Dependencies are resolved for an empty system, not for this machine or a host, so the repository suits every host with
this release. apt resolves, downloads and verifies them by the signatures of the release's archive.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsim.errors import Unavailable
from fedsim_fleet.releases import Release

PACKAGES = ("python3-venv", "mariadb-server", "nginx-light", "age", "nftables")
_INSTALLS = re.compile(r"^Inst (?P<name>\S+) \((?P<version>\S+) .*\[(?P<architecture>\w+)\]\)", re.MULTILINE)


@dataclass(frozen=True)
class Repository:
    """A repository in `folder`; apt keeps its own state in `state`. The mirrors replace those of the release."""

    release: Release
    folder: Path
    state: Path
    mirror: str | None = None
    security_mirror: str | None = None

    def gather(self) -> None:
        """Download missing packages, remove those that are no longer needed, and write the index.

        Raises:
            Unavailable: apt failed; the text has its output.
        """
        self._prepare()
        self._apt("update")
        plan = self._apt("install", "--simulate", *PACKAGES)
        self._apt("install", "--download-only", *PACKAGES)
        wanted = {_file_name(**match.groupdict()) for match in _INSTALLS.finditer(plan)}
        for path in self.folder.glob("*.deb"):
            if path.name not in wanted:
                path.unlink()
        (self.folder / "Packages").write_text(_index(self.folder), encoding="utf-8")

    def _prepare(self) -> None:
        for folder in (self.folder / "partial", self.state / "lists" / "partial", self.state / "cache"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.state / "status").touch()  # nothing is installed
        if not Path(self.release.keyring).exists():
            raise Unavailable(f"gathering Debian packages: {self.release.keyring} is not installed on this machine")
        sources = self.release.sources(self.mirror, self.security_mirror)
        (self.state / "sources.list").write_text(sources, encoding="utf-8")

    def _apt(self, *arguments: str) -> str:
        state = self.state.resolve()
        settings = {
            "Dir::State": state,
            "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache",
            "Dir::Cache::archives": self.folder.resolve(),
            "Dir::Etc::sourcelist": state / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Install-Recommends": "false",
            "APT::Update::Error-Mode": "any",
        }
        options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
        return run(["apt-get", "--quiet=2", "--assume-yes", *options, *arguments], "gathering Debian packages")


def run(command: list[str], purpose: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a program and return its output.

    Raises:
        Unavailable: it is not installed, or failed.
    """
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    except FileNotFoundError as error:
        raise Unavailable(f"{purpose}: {command[0]} is not installed; gather on a Debian machine") from error
    if done.returncode:
        raise Unavailable(f"{purpose}: {command[0]} failed with exit code {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def _file_name(name: str, version: str, architecture: str) -> str:
    """The name of the file in apt's cache."""
    return f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"


def _index(folder: Path) -> str:
    """The repository's Packages file: for each package its control fields, path, size and digest."""
    stanzas = []
    for path in sorted(folder.glob("*.deb")):
        itself = run(["dpkg-deb", "--field", str(path)], "indexing Debian packages").rstrip()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        stanzas.append(f"{itself}\nFilename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {digest}\n")
    return "\n".join(stanzas)
