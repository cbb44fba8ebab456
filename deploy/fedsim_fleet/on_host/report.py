"""Run on a host by `fedsim-fleet`: what it tells of itself, as JSON. Only Python's own library.

Its argument is one JSON object, {"units": [...], "deep": bool, "connect": [[address, port], ...], "datasets": [paths],
"metrics": {"server": port, "client": port}}. What is asked for only with "deep" takes a second or more.
"""

import hashlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CURRENT = Path("/opt/fedsim/current")
CONFIGURATION = Path("/etc/fedsim")
STATE = Path("/var/lib/fedsim")
PROPERTIES = "LoadState,ActiveState,SubState,UnitFileState,StatusText,NRestarts"
SECONDS = 20
LINES = 5


def run(*command: str, seconds: float = SECONDS) -> tuple[str, int]:
    """What a program printed, and its exit code; 127 if it is not there."""
    try:
        done = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            stdin=subprocess.DEVNULL, timeout=seconds,
        )  # fmt: skip
    except FileNotFoundError:
        return "", 127
    except subprocess.TimeoutExpired:
        return f"{command[0]} has not ended in {seconds} s", 124
    return done.stdout, done.returncode


def unit(name: str, *, deep: bool) -> dict[str, object]:
    """How a unit is, and the last it said if it is not well."""
    text, _ = run("systemctl", "show", "--property", PROPERTIES, name)
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    told = {
        "name": name,
        "loaded": found.get("LoadState") == "loaded",
        "state": found.get("ActiveState", "unknown"),
        "sub": found.get("SubState", ""),
        "enabled": found.get("UnitFileState", ""),
        "status": found.get("StatusText", ""),
        "restarts": int(found.get("NRestarts") or 0),
        "lines": [],
    }
    if deep and told["state"] != "active":
        text, code = run("journalctl", "--unit", name, "--lines", str(LINES), "--output=cat", "--no-pager", "--quiet")
        told["lines"] = text.splitlines()[-LINES:] if code == 0 else []
    return told


def memory() -> dict[str, int]:
    """Bytes that are available, and all."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
    return {"free": int(found["MemAvailable"]) * 1024, "all": int(found["MemTotal"]) * 1024}


def disk() -> dict[str, int]:
    """Bytes that are free, and all, where fedsim keeps its files."""
    usage = shutil.disk_usage(next(place for place in (STATE, *STATE.parents) if place.is_dir()))
    return {"free": usage.free, "all": usage.total}


def gpus() -> list[str]:
    """A line for each NVIDIA GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = "--query-gpu=name,utilization.gpu,memory.used,memory.total"
    text, code = run("nvidia-smi", query, "--format=csv,noheader,nounits")
    return text.splitlines() if code == 0 else [f"nvidia-smi fails: {text.strip()[-200:]}"]


def certificates() -> list[dict[str, str]]:
    """Each certificate, and whether the key beside it is its own."""
    told = []
    for path in sorted([*CONFIGURATION.glob("pki/*.crt"), *CONFIGURATION.glob("*/pki/*.crt")]):
        key = path.with_suffix(".key")
        problem = ""
        if key.exists():
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, key)
            except (ssl.SSLError, OSError) as error:
                problem = str(error)
        pem = path.read_text(encoding="utf-8", errors="replace")
        told.append({"path": str(path), "pem": pem, "problem": problem})
    return told


def digest(path: Path) -> str:
    """SHA-256 of a small file, or nothing if it is not there."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def numbers(port: int) -> dict[str, float]:
    """What a daemon tells Prometheus, without labels, or nothing if it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read(1 << 20).decode()
    except OSError:
        return {}
    found = re.findall(r"^(fedsim_\w+(?:\{[^}]*\})?) ([0-9.e+-]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found if "_bucket" not in name}


def reaches(address: str, port: int) -> str:
    """Why a connection cannot be opened, or nothing."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError as error:
        return str(error.strerror or error)
    return ""


def pages() -> str:
    """Why the pages do not answer through nginx, or nothing; the certificate is not this question's."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen("https://127.0.0.1/healthz", timeout=10, context=context):
            return ""
    except OSError as error:
        return str(error)


def configurations() -> list[dict[str, object]]:
    """What each daemon says of its file."""
    told = []
    for path in sorted([*CONFIGURATION.glob("*.yml"), *CONFIGURATION.glob("*/*.yml")]):
        program = CURRENT / "bin" / f"fedsim-{path.stem}"
        if program.exists():
            text, code = run(str(program), "--validate-config", "--config", str(path))
            told.append({"path": str(path), "valid": code == 0, "says": "" if code == 0 else text[-2000:]})
    return told


def unreadable(path: Path) -> str:
    """Why the user fedsim cannot read a data set, or nothing."""
    if not path.exists():
        return "is not there"
    for place in [path, *(path.iterdir() if path.is_dir() else [])]:
        _, code = run("runuser", "--user", "fedsim", "--", "test", "-r", str(place))
        if code:
            return f"cannot be read by the user fedsim ({place})"
    return ""


def failed(known: list[str]) -> list[str]:
    """Units of fedsim's that have failed, besides those that are asked for: instances, leftovers."""
    text, _ = run("systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "fedsim*")
    names = [line.split()[0].removesuffix(".service") for line in text.splitlines() if line.strip()]
    return [name for name in names if name not in known]


def unwritable() -> list[str]:
    """Folders that are the user fedsim's, and that it cannot write."""
    folders = [place for place in (STATE / "server", STATE / "client") if place.is_dir()]
    return [str(place) for place in folders if run("runuser", "--user", "fedsim", "--", "test", "-w", str(place))[1]]


def limit(name: str) -> int:
    """A limit of the kernel."""
    return int(Path("/proc/sys/fs/inotify", name).read_text(encoding="ascii"))


def slow(asked: dict[str, Any]) -> dict[str, object]:
    """What takes a while."""
    with ThreadPoolExecutor(16) as threads:
        ways = list(threads.map(lambda way: reaches(*way), asked["connect"]))
    killed, code = run(
        "journalctl", "--dmesg", "--quiet", "--no-pager", "--since=-1day", "--output=cat", "--grep=Out of memory"
    )
    synchronised, _ = run("timedatectl", "show", "--property=NTPSynchronized", "--value")
    return {
        "failed": failed(asked["units"]),
        "unwritable": unwritable(),
        "configurations": configurations(),
        "ways": [
            {"address": way[0], "port": way[1], "problem": why} for way, why in zip(asked["connect"], ways, strict=True)
        ],
        "datasets": [{"path": path, "problem": unreadable(Path(path))} for path in asked["datasets"]],
        "pages": pages() if (CONFIGURATION / "web.yml").exists() else "",
        "killed": killed.splitlines()[-LINES:] if code == 0 else [],
        "synchronised": synchronised.strip(),
        "watches": {"instances": limit("max_user_instances"), "watches": limit("max_user_watches")},
    }


def main() -> None:
    """Ask this host, and print what it is."""
    asked = json.loads(sys.argv[1])
    with ThreadPoolExecutor(8) as threads:
        units = list(threads.map(lambda name: unit(name, deep=asked["deep"]), asked["units"]))
    metrics = {name: numbers(port) for name, port in asked["metrics"].items()}
    told: dict[str, Any] = {
        "clock": time.time(),
        "version": CURRENT.resolve().name if CURRENT.is_symlink() else "",
        "units": units,
        "disk": disk(),
        "memory": memory(),
        "gpus": gpus(),
        "certificates": certificates(),
        "revoked": digest(CONFIGURATION / "pki" / "crl.pem"),
        "metrics": metrics,
        "deep": slow(asked) if asked["deep"] else None,
    }
    told["took"] = time.time() - told["clock"]
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
