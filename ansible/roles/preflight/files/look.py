"""Run on a host before anything is installed: disk, ports, names and clock, as JSON. Only Python's own library."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time


def who_listens(port: int) -> str:
    """The program that holds a TCP port, or nothing."""
    command = ["ss", "--no-header", "--listening", "--tcp", "--numeric", "--processes", f"sport = :{port}"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    programs = re.findall(r'\("([^"]+)"', found)
    return "systemd" if "systemd" in programs else programs[0] if programs else "an unknown program" if found else ""


def has_address(name: str) -> bool:
    """Whether this host can tell the address of a name."""
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror:
        return False
    return True


ports, *names = sys.argv[1:]
taken = [{"port": int(port), "program": who_listens(int(port))} for port in ports.split(",")]
json.dump(
    {
        "free_bytes": min(shutil.disk_usage(folder).free for folder in ("/opt", "/var")),
        "taken": [item for item in taken if item["program"]],
        "unknown": [name for name in names if not has_address(name)],
        "clock": time.time(),
        "installed": os.path.exists("/opt/fedsim/current"),
    },
    sys.stdout,
)
