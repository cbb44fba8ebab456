"""What a process can use of its host: processors and memory, and how often the memory did not suffice."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def installed_memory() -> int:
    """The memory that this process can use, bytes: what is installed, or its systemd unit's `MemoryMax=` if less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(installed, _unit_limit(_cgroup()) or installed)


def oom_kills() -> int:
    """How many processes the kernel of this host has killed for lack of memory since it booted."""
    lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _cgroup() -> Path:
    """The folder of this process's cgroup, in the hierarchy of version 2."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    paths = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    return CGROUPS / paths[0] if paths else CGROUPS


def _unit_limit(cgroup: Path) -> int | None:
    """The limit of a cgroup; None where there is none, or the host has no such hierarchy."""
    try:
        text = (cgroup / "memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
