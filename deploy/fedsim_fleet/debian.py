"""Debian packages for hosts without a way to a mirror: what they need, with all that it depends on, as a repository.

Dependencies are counted from an empty system, not from this machine or from a host, so that the repository suits every
Debian 12. apt itself resolves, downloads and verifies, by the signatures of Debian's archive.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsim.errors import Unavailable

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
SECURITY_MIRROR = "http://deb.debian.org/debian-security"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# With python3-apt Ansible installs the others.
PACKAGES = ("python3-apt", "python3-venv", "mariadb-server", "nginx-light")
_INSTALLS = re.compile(r"^Inst (?P<name>\S+) \((?P<version>\S+) .*\[(?P<architecture>\w+)\]\)", re.MULTILINE)


@dataclass(frozen=True)
class Repository:
    """`folder` becomes the repository; apt's own state lies in `state`."""

    folder: Path
    state: Path
    mirror: str = MIRROR
    security_mirror: str = SECURITY_MIRROR

    def gather(self) -> None:
        """Download what is missing, remove what is no longer needed, write the index.

        Raises:
            Unavailable: apt cannot; with what it says.
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
        sources = [
            f"deb [signed-by={KEYRING}] {mirror} {suite} main"
            for mirror, suite in (
                (self.mirror, SUITE),
                (self.mirror, f"{SUITE}-updates"),
                (self.security_mirror, f"{SUITE}-security"),
            )
        ]
        (self.state / "sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")

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
    """Run a program; returns what it printed.

    Raises:
        Unavailable: it is not installed, or ended with an error.
    """
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    except FileNotFoundError as error:
        raise Unavailable(f"{purpose}: {command[0]} is not installed here; gather on a Debian 12") from error
    if done.returncode:
        raise Unavailable(f"{purpose}: {command[0]} ended with {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def _file_name(name: str, version: str, architecture: str) -> str:
    """As apt calls the file in its cache."""
    return f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"


def _index(folder: Path) -> str:
    """The repository's Packages: of each file what it says of itself, where it lies, its size and digest."""
    stanzas = []
    for path in sorted(folder.glob("*.deb")):
        itself = run(["dpkg-deb", "--field", str(path)], "indexing Debian packages").rstrip()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        stanzas.append(f"{itself}\nFilename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {digest}\n")
    return "\n".join(stanzas)
