"""Run on a host by `fedsim-fleet`: prints a report of its state as JSON. Only the standard library.

The argument is a JSON object, {"units": [...], "diagnostics": bool, "connect": [[address, port], ...],
"datasets": [paths], "metrics": {"server": port, "client": port}}. Diagnostics take a second or more.
"""

import hashlib
import json
import os
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
    """Run a program; returns its output and exit code, 127 if it is not installed."""
    try:
        done = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            stdin=subprocess.DEVNULL, timeout=seconds,
        )  # fmt: skip
    except FileNotFoundError:
        return "", 127
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end within {seconds} s", 124
    return done.stdout, done.returncode


def unit(name: str, *, diagnostics: bool) -> dict[str, object]:
    """The state of a unit and, if it is not active, the end of its journal."""
    text, _ = run("systemctl", "show", "--property", PROPERTIES, name)
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    result = {
        "name": name,
        "loaded": found.get("LoadState") == "loaded",
        "state": found.get("ActiveState", "unknown"),
        "sub": found.get("SubState", ""),
        "enabled": found.get("UnitFileState", ""),
        "status": found.get("StatusText", ""),
        "restarts": int(found.get("NRestarts") or 0),
        "lines": [],
    }
    if diagnostics and result["state"] != "active":
        text, code = run("journalctl", "--unit", name, "--lines", str(LINES), "--output=cat", "--no-pager", "--quiet")
        result["lines"] = text.splitlines()[-LINES:] if code == 0 else []
    return result


def memory() -> dict[str, int]:
    """Available and total memory in bytes."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
    return {"free": int(found["MemAvailable"]) * 1024, "all": int(found["MemTotal"]) * 1024}


def disk() -> dict[str, int]:
    """Free and total bytes of the disk with fedsim's files."""
    usage = shutil.disk_usage(next(place for place in (STATE, *STATE.parents) if place.is_dir()))
    return {"free": usage.free, "all": usage.total}


def gpus() -> list[str]:
    """One line for each NVIDIA GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = "--query-gpu=name,utilization.gpu,memory.used,memory.total"
    text, code = run("nvidia-smi", query, "--format=csv,noheader,nounits")
    return text.splitlines() if code == 0 else [f"nvidia-smi fails: {text.strip()[-200:]}"]


def certificates() -> list[dict[str, str]]:
    """Each certificate, and whether it matches its key."""
    result = []
    for path in sorted([*CONFIGURATION.glob("pki/*.crt"), *CONFIGURATION.glob("*/pki/*.crt")]):
        key = path.with_suffix(".key")
        problem = ""
        if key.exists():
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, key)
            except (ssl.SSLError, OSError) as error:
                problem = str(error)
        pem = path.read_text(encoding="utf-8", errors="replace")
        result.append({"path": str(path), "pem": pem, "problem": problem})
    return result


def digest(path: Path) -> str:
    """SHA-256 of a small file; empty if it does not exist."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def metrics_of(port: int) -> dict[str, float]:
    """A daemon's metrics for Prometheus; empty if it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read(1 << 20).decode()
    except OSError:
        return {}
    found = re.findall(r"^(fedsim_\w+(?:\{[^}]*\})?) ([0-9.e+-]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found if "_bucket" not in name}


def reaches(address: str, port: int) -> str:
    """Why a connection cannot be opened; empty if it can."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError as error:
        return str(error.strerror or error)
    return ""


def pages() -> str:
    """Why the pages cannot be fetched through nginx; empty if they can. The certificate is checked elsewhere."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen("https://127.0.0.1/healthz", timeout=10, context=context):
            return ""
    except OSError as error:
        return str(error)


def configurations() -> list[dict[str, object]]:
    """Validate each configuration file with its daemon."""
    result = []
    for path in sorted([*CONFIGURATION.glob("*.yml"), *CONFIGURATION.glob("*/*.yml")]):
        program = CURRENT / "bin" / f"fedsim-{path.stem}"
        if program.exists():
            text, code = run(str(program), "--validate-config", "--config", str(path))
            result.append({"path": str(path), "valid": code == 0, "output": "" if code == 0 else text[-2000:]})
    return result


def outdated(names: list[str]) -> dict[str, list[str]]:
    """The units that run with other files than those on disk, and which kinds of files differ."""
    units = [f"{name}.service" for name in names] + (["nginx.service"] if (CONFIGURATION / "web.yml").exists() else [])
    text, code = run(str(CURRENT / "bin/python"), "-I", "-m", "fedsim_fleet.on_host.units", "compare", *units)
    return json.loads(text) if code == 0 else {}  # an older version does not record it


def unreadable(path: Path) -> str:
    """Why the user fedsim cannot read a data set; empty if it can."""
    if not path.exists():
        return "does not exist"
    for place in [path, *(path.iterdir() if path.is_dir() else [])]:
        _, code = run("runuser", "--user", "fedsim", "--", "test", "-r", str(place))
        if code:
            return f"cannot be read by the user fedsim ({place})"
    return ""


def failed(known: list[str]) -> list[str]:
    """Failed units of fedsim that are not in the request, such as instances."""
    text, _ = run("systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "fedsim*")
    names = [line.split()[0].removesuffix(".service") for line in text.splitlines() if line.strip()]
    return [name for name in names if name not in known]


def folders() -> dict[str, str]:
    """The folders that daemons use, and for what; those of the YAML files as well."""
    found = {str(CURRENT.parent): "versions", "/var/lib/mysql": "database", "/var/log": "logs", "/tmp": "temporary"}  # noqa: S108
    for path in [*CONFIGURATION.glob("*.yml"), *CONFIGURATION.glob("*/*.yml")]:
        text = path.read_text(encoding="utf-8", errors="replace")
        for key, value in re.findall(r"^(spool|data|checkpoints): *[\"']?(/[^\s\"']+)", text, re.MULTILINE):
            found.setdefault(value, key)
    for place in ("server", "client"):
        found.setdefault(str(STATE / place), "spool")
    return {path: use for path, use in found.items() if Path(path).is_dir()}


def file_systems() -> list[dict[str, object]]:
    """The capacity of each folder's file system; `entries`: files that can still be created, -1 without a limit."""
    result: list[dict[str, object]] = []
    for path, use in folders().items():
        seen = os.statvfs(path)
        result.append(
            {
                "folder": path,
                "use": use,
                "device": str(Path(path).stat().st_dev),
                "free": seen.f_bavail * seen.f_frsize,
                "all": seen.f_blocks * seen.f_frsize,
                "entries": seen.f_favail if seen.f_files else -1,
                "readonly": bool(seen.f_flag & os.ST_RDONLY),
            }
        )
    return result


def unwritable() -> list[str]:
    """State folders that the user fedsim cannot write."""
    places = [place for place, use in folders().items() if use == "spool"]
    return [place for place in places if run("runuser", "--user", "fedsim", "--", "test", "-w", place)[1]]


def limit(name: str) -> int:
    """A limit of inotify."""
    return int(Path("/proc/sys/fs/inotify", name).read_text(encoding="ascii"))


def slow(request: dict[str, Any]) -> dict[str, object]:
    """The diagnostics."""
    with ThreadPoolExecutor(16) as threads:
        problems = list(threads.map(lambda peer: reaches(*peer), request["connect"]))
    killed, code = run(
        "journalctl", "--dmesg", "--quiet", "--no-pager", "--since=-1day", "--output=cat", "--grep=Out of memory"
    )
    synchronised, _ = run("timedatectl", "show", "--property=NTPSynchronized", "--value")
    return {
        "failed": failed(request["units"]),
        "unwritable": unwritable(),
        "file_systems": file_systems(),
        "configurations": configurations(),
        "outdated": outdated(request["units"]),
        "connections": [
            {"address": peer[0], "port": peer[1], "problem": problem}
            for peer, problem in zip(request["connect"], problems, strict=True)
        ],
        "datasets": [{"path": path, "problem": unreadable(Path(path))} for path in request["datasets"]],
        "pages": pages() if (CONFIGURATION / "web.yml").exists() else "",
        "killed": killed.splitlines()[-LINES:] if code == 0 else [],
        "synchronised": synchronised.strip(),
        "inotify": {"instances": limit("max_user_instances"), "watches": limit("max_user_watches")},
    }


def main() -> None:
    """Print the report."""
    request = json.loads(sys.argv[1])
    with ThreadPoolExecutor(8) as threads:
        units = list(threads.map(lambda name: unit(name, diagnostics=request["diagnostics"]), request["units"]))
    metrics = {name: metrics_of(port) for name, port in request["metrics"].items()}
    result: dict[str, Any] = {
        "clock": time.time(),
        "version": CURRENT.resolve().name if CURRENT.is_symlink() else "",
        "units": units,
        "disk": disk(),
        "memory": memory(),
        "gpus": gpus(),
        "certificates": certificates(),
        "revoked": digest(CONFIGURATION / "pki" / "crl.pem"),
        "metrics": metrics,
        "diagnostics": slow(request) if request["diagnostics"] else None,
    }
    result["duration"] = time.time() - result["clock"]
    print("\n" + json.dumps(result))  # noqa: T201 - the answer; a shell's profile may have printed something before


if __name__ == "__main__":
    main()
