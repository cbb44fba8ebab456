"""Run on a host before installation: prints disk, ports, names and clock as JSON. Only the standard library."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time


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


ports, *names = sys.argv[1:]
taken = [{"port": int(port), "program": listening_program(int(port))} for port in ports.split(",")]
json.dump(
    {
        "free_bytes": min(shutil.disk_usage(folder).free for folder in ("/opt", "/var")),
        "taken": [item for item in taken if item["program"]],
        "unknown": [name for name in names if not is_resolvable(name)],
        "clock": time.time(),
        "installed": os.path.exists("/opt/fedsim/current"),
    },
    sys.stdout,
)
