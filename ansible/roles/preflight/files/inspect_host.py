"""Run on a host before installation: prints disk, ports, names and clock as JSON. Only the standard library."""

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path


def listening_program(port: int) -> str:
    """The program that listens on a TCP port; empty if there is none."""
    command = ["ss", "--no-header", "--listening", "--tcp", "--numeric", "--processes", f"sport = :{port}"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    programs = re.findall(r'\("([^"]+)"', found)
    return "systemd" if "systemd" in programs else programs[0] if programs else "an unknown program" if found else ""


def is_resolvable(name: str) -> bool:
    """Whether this host can resolve a name."""
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror:
        return False
    return True


def distribution() -> str:
    """The name of the system and its version, such as Debian 12."""
    release = platform.freedesktop_os_release()
    return f"{release['NAME'].split()[0]} {release.get('VERSION_ID', '')}".strip()


ports, *names = sys.argv[1:]
taken = [{"port": int(port), "program": listening_program(int(port))} for port in ports.split(",")]
report = json.dumps(
    {
        "distribution": distribution(),
        "memory_mebibytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1048576,
        "free_bytes": min(shutil.disk_usage(folder).free for folder in ("/opt", "/var")),
        "taken": [item for item in taken if item["program"]],
        "unknown": [name for name in names if not is_resolvable(name)],
        "clock": time.time(),
        "installed": current.readlink().name if (current := Path("/opt/fedsim/current")).is_symlink() else "",
    }
)
print("\n" + report)  # a shell's profile may have printed something
