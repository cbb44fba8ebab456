"""Run on a host: restarts or reloads the units that run with other files than those on disk. Only the standard library.

    units.py record [--reload] UNIT         records the files with which a unit starts or reloads; called by systemd
    units.py compare UNIT...                prints what differs from that for each unit, as JSON
    units.py converge [--reload] UNIT...    enables and starts the units, and restarts or reloads those that differ;
                                            -UNIT is stopped and disabled

The record is a digest for each kind of file. It is made before the unit reads its files, so a file that changes in
between differs from it. `converge` prints what it changed, as JSON. If a unit does not start or reload, it prints the
last lines that the unit itself logged, and ends with exit code 1.
"""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

RECORDS = Path("/run/fedsim/loaded")  # by fedsim's own units, at each start
OTHER_RECORDS = Path("/opt/fedsim/records")  # by `converge`
CONFIGURATION = Path("/etc/fedsim")
CURRENT = Path("/opt/fedsim/current")
SYSTEMD = Path("/etc/systemd/system")
SITE = Path("/etc/nginx/sites-available/fedsim")
ENABLED_SITE = Path("/etc/nginx/sites-enabled/default")
DATABASE = Path("/etc/mysql/mariadb.conf.d/90-fedsim.cnf")
FIREWALL = "fedsim_firewall.service"
RULES = (Path("/etc/fedsim/firewall.nft"), Path("/opt/fedsim/firewall/apply.sh"))
PROPERTIES = "Id,LoadState,ActiveState,UnitFileState,NeedDaemonReload,FragmentPath,DropInPaths"
# What a reload applies; everything else needs a restart.
RELOADABLE = {"nginx.service": {"configuration", "credentials"}, FIREWALL: {"configuration"}}
RELOADABLE_OF_FEDSIM = {"credentials"}
NEED_RESTART = {"unit", "version"}
ENABLED = {"enabled", "enabled-runtime", "static", "alias", "indirect", "generated"}
LINES = 5
READY_SECONDS = "90"
TIMED_OUT = 124  # the exit code of timeout


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end."""
    return subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def properties(unit: str) -> dict[str, str]:
    """What systemd knows about a unit."""
    text = run("systemctl", "show", "--property", PROPERTIES, unit).stdout
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def digest(paths: Iterable[Path]) -> str:
    """A digest of the names and contents of files, including missing ones."""
    result = hashlib.sha256()
    for path in paths:
        content = path.read_bytes() if path.is_file() else b"missing"
        result.update(f"{path}\0{len(content)}\0".encode() + content)
    return result.hexdigest()


def files(unit: str) -> dict[str, list[Path]]:
    """The files with which a unit runs, by their kind."""
    if unit == "nginx.service":
        site = SITE.read_text(encoding="utf-8") if SITE.exists() else ""
        names = re.findall(r"^\s*ssl_certificate(?:_key)?\s+(\S+);", site, re.MULTILINE)
        return {"configuration": [SITE, ENABLED_SITE], "credentials": [Path(name) for name in names]}
    if unit == "mariadb.service":
        return {"configuration": [DATABASE]}
    name, _, instance = unit.rpartition(".")[0].partition("@")
    known = properties(unit)
    result = {"unit": sorted(map(Path, [known.get("FragmentPath", ""), *known.get("DropInPaths", "").split()]))}
    if unit == FIREWALL:
        return {**result, "configuration": list(RULES)}
    if unit.endswith(".service"):
        folder = CONFIGURATION / instance
        secrets = [path for place in ("pki", "secrets") for path in sorted((folder / place).glob("*"))]
        environment = CURRENT.resolve()
        result["version"] = [environment, *sorted(environment.glob("installed-*"))]
        result["configuration"] = [folder / f"{name.removeprefix('fedsim-')}.yml"]
        # Certificates of the authority are shared by all instances of a host.
        shared = [CONFIGURATION / "pki" / name for name in ("ca.crt", "crl.pem")] if instance else []
        result["credentials"] = [*shared, *(path for path in secrets if path.suffix not in {".new", ".tmp"})]
    return result


def digests(unit: str) -> dict[str, str]:
    """The digest of each kind of a unit's files as they are now."""
    return {kind: digest(paths) for kind, paths in files(unit).items()}


def record_path(unit: str) -> Path:
    """Where the record of a unit is."""
    return (RECORDS if records_itself(unit) else OTHER_RECORDS) / f"{unit}.json"


def records_itself(unit: str) -> bool:
    """Whether a unit calls `record` when it starts and reloads."""
    return unit.startswith("fedsim") and unit != FIREWALL


def recorded(unit: str) -> dict[str, str]:
    """The record of a unit; empty if there is none."""
    try:
        result: dict[str, str] = json.loads(record_path(unit).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result


def record(unit: str, *, reload: bool = False) -> None:
    """Record the files of a unit, readable by root only, because a digest can reveal a short secret."""
    now = digests(unit)
    if reload:  # the process keeps its program and its sandbox
        before = recorded(unit)
        now |= {kind: before.get(kind, "") for kind in NEED_RESTART & now.keys()}
    path = record_path(unit)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(json.dumps(now), encoding="utf-8")
    new.replace(path)


def differences(unit: str) -> set[str]:
    """The kinds of files that differ from the record; all kinds if there is none."""
    now, before = digests(unit), recorded(unit)
    return {kind for kind in now if before.get(kind) != now[kind]}


def compare(units: list[str]) -> dict[str, list[str]]:
    """What differs for each unit that is active."""
    active = [unit for unit in units if properties(unit).get("ActiveState") == "active"]
    # Another program, such as one that renews a public certificate, may have reloaded nginx.
    ignored = {"nginx.service": {"credentials"}}
    return {unit: found for unit in active if (found := sorted(differences(unit) - ignored.get(unit, set())))}


class UnitError(Exception):
    """A unit does not start or reload."""


def logged(unit: str, since: float, *matches: str) -> list[str]:
    """What a unit itself, not systemd, has logged since a time."""
    run("journalctl", "--sync")
    own = (f"_SYSTEMD_UNIT={unit}", *matches)
    return run("journalctl", "--quiet", "--no-pager", "--output=cat", f"--since=@{since:.3f}", *own).stdout.splitlines()


def control(verb: str, unit: str) -> str:
    """Start, restart or reload a unit; returns what was done.

    Raises:
        UnitError: with the unit's last lines.
    """
    since = time.time()
    run("systemctl", "reset-failed", unit)  # so that earlier attempts do not count
    if unit.endswith(".socket") and verb != "start":
        # A socket cannot be opened again while its service has it.
        run("systemctl", "stop", unit, unit.replace(".socket", ".service"))
        verb = "start"
    # A daemon may wait for its database as long as it takes.
    done = run("timeout", READY_SECONDS, "systemctl", verb, unit)
    events = logged(unit, since, "FEDSIM_EVENT=reload_failed") if verb == "reload" else []
    if done.returncode or events:
        record_path(unit).unlink(missing_ok=True)
        lines = events or logged(unit, since) or done.stdout.splitlines()
        late = f" within {READY_SECONDS} s" if done.returncode == TIMED_OUT else ""
        raise UnitError(f"{unit} does not {verb}{late}: " + "\n".join(lines[-LINES:]))
    if verb == "reload" and logged(unit, since, "FEDSIM_EVENT=restart_needed"):
        return control("restart", unit)
    return f"{verb} {unit}"


def needs_reload(unit: str) -> str:
    """Whether systemd has not read the present definition of a unit: yes or no."""
    return properties(unit).get("NeedDaemonReload", "no")


def converge(units: list[str], *, reload_configuration: bool) -> list[str]:
    """Enable and start the units, in this order, and restart or reload those that differ; returns what was done."""
    unwanted = [unit.removeprefix("-") for unit in units if unit.startswith("-")]
    units = [unit for unit in units if not unit.startswith("-")]
    before = {unit: properties(unit) for unit in [*units, *unwanted]}
    # Of a timer also the service that it starts.
    stale = {unit for unit in before if "yes" in (needs_reload(unit), needs_reload(unit.replace(".timer", ".service")))}
    done = []
    if stale:
        run("systemctl", "daemon-reload")
        done.append("daemon-reload")
    for unit in unwanted:
        if before[unit].get("UnitFileState") in ENABLED or before[unit].get("ActiveState") == "active":
            run("systemctl", "disable", "--quiet", "--now", unit)
            done.append(f"disable {unit}")
    for unit in units:
        if before[unit].get("UnitFileState") not in ENABLED:
            run("systemctl", "enable", "--quiet", unit)
            done.append(f"enable {unit}")
    for unit in units:
        reloadable = RELOADABLE.get(unit, RELOADABLE_OF_FEDSIM) | ({"configuration"} if reload_configuration else set())
        state = properties(unit).get("ActiveState")
        found = set() if unit.endswith((".target", ".timer")) else differences(unit)
        if state != "active":
            verb = "start" if state == "inactive" else "restart"
        elif unit in stale or found - reloadable:
            verb = "restart"
        elif found:
            verb = "reload"
        else:
            continue
        if not records_itself(unit):
            record(unit)
        done.append(control(verb, unit))
    return done


def main() -> int:
    """Run the command line; returns the exit code."""
    action, *arguments = sys.argv[1:]
    units, reload = [unit for unit in arguments if unit != "--reload"], "--reload" in arguments
    if action == "record":
        record(units[0], reload=reload)
    elif action == "compare":
        print(json.dumps(compare(units)))  # noqa: T201
    else:
        try:
            print(json.dumps(converge(units, reload_configuration=reload)))  # noqa: T201
        except UnitError as problem:
            print(problem)  # noqa: T201
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
