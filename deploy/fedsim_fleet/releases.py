"""The operating systems on which hosts can run. Everything that differs between them is stated here."""

from __future__ import annotations

import platform
from collections.abc import Collection
from dataclasses import dataclass

_DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_OLDEST_GLIBC = 5  # the oldest glibc, 2.5, for which wheels are built


@dataclass(frozen=True)
class Release:
    """A release of a Debian-based system: its names, its Python and glibc, and where its packages come from."""

    name: str  # as its archive is called; also the name of the folder with its packages
    system: str  # NAME and VERSION_ID in its /etc/os-release
    python: str
    glibc: int  # the minor version of glibc 2
    mirror: str = "http://deb.debian.org/debian"
    security_mirror: str = "http://deb.debian.org/debian-security"
    components: str = "main"
    keyring: str = _DEBIAN_KEYRING

    def sources(self, mirror: str | None = None, security_mirror: str | None = None) -> str:
        """The lines of sources.list for its packages, updates and security updates."""
        suites = (
            (mirror or self.mirror, self.name),
            (mirror or self.mirror, f"{self.name}-updates"),
            (security_mirror or self.security_mirror, f"{self.name}-security"),
        )
        return "".join(
            f"deb [signed-by={self.keyring}] {address} {suite} {self.components}\n" for address, suite in suites
        )

    def platforms(self, machine: str = platform.machine()) -> list[str]:
        """The platform tags of the wheels that it can install, the newest first."""
        return [f"manylinux_2_{minor}_{machine}" for minor in range(self.glibc, _OLDEST_GLIBC - 1, -1)] + [
            f"manylinux2014_{machine}",
            f"manylinux2010_{machine}",
            f"manylinux1_{machine}",
            f"linux_{machine}",
        ]


_ALL = (
    Release("bookworm", "Debian 12", "3.11", 36),
    Release("trixie", "Debian 13", "3.13", 41),
    Release(  # never tested on a host
        "noble",
        "Ubuntu 24.04",
        "3.12",
        39,
        mirror="http://archive.ubuntu.com/ubuntu",
        security_mirror="http://security.ubuntu.com/ubuntu",
        components="main universe",
        keyring="/usr/share/keyrings/ubuntu-archive-keyring.gpg",
    ),
)
RELEASES = {release.name: release for release in _ALL}
DEFAULT = "bookworm"


def release_problem(system: str, gathered: Collection[str]) -> str:
    """What prevents a host with this system from being deployed, and what to do; empty if nothing does.

    Args:
        system: as in `Release.system`.
        gathered: the systems for which packages were gathered.
    """
    if system in gathered:
        return ""
    known = {release.system: release.name for release in _ALL}
    if system not in known:
        return f"it runs {system}: install {' or '.join(known)}, or use another host."
    names = " ".join([known[name] for name in known if name in gathered] + [known[system]])
    return f'it runs {system}, for which nothing was gathered: run `make gather RELEASES="{names}"`.'
