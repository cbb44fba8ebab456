"""The unit files: systemd accepts them, they are hardened, and they agree with the rest of the repository."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from presence import missing

from fedsim.errors import EX_CONFIG

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
SOCKETS = sorted(path.name for path in UNITS.glob("*.socket"))
ALL = [*SERVICES, *SOCKETS, "fedsim.target"]
# Ten times the exposure level: at most 2.0.
MOST_EXPOSED = 20


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is not installed: apt-get install systemd")
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def settings(*files: Path) -> dict[str, list[str]]:
    """Every setting of the files, with its values in order."""
    found: dict[str, list[str]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if re.match(r"[A-Za-z]+=", line):
                key, _, value = line.partition("=")
                found.setdefault(key, []).append(value)
    return found


def unit(name: str) -> dict[str, list[str]]:
    """A unit's settings, with those of the drop-ins for all services."""
    shared = sorted((UNITS / "fedsim-.service.d").glob("*.conf")) if name.endswith(".service") else []
    return settings(UNITS / name, *shared)


def sample(name: str) -> dict[str, object]:
    return dict(yaml.safe_load((ROOT / "etc" / "fedsim" / f"{name}.yml").read_text(encoding="utf-8")))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as on a host where this environment is /opt/fedsim/current."""
    folder = tmp_path / "units"
    shutil.copytree(UNITS, folder)
    for path in folder.rglob("*.service"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("/opt/fedsim/current/bin", str(Path(sys.executable).parent)), encoding="utf-8")
    return folder


# ---------------------------------------------------------------- what systemd says


def test_systemd_finds_nothing_wrong(installed: Path) -> None:
    done = run(program("systemd-analyze"), "verify", "--man=no", *(installed / name for name in ALL))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def exposure(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    analyze = program("systemd-analyze")
    return run(analyze, "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", "--no-pager", folder / name)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_exposed_at_most_at_two_of_ten(installed: Path, name: str) -> None:
    done = exposure(installed, name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_the_shared_hardening_a_service_would_be_exposed(installed: Path) -> None:
    (installed / "fedsim-.service.d" / "10-hardening.conf").unlink()
    assert exposure(installed, "fedsim-server.service").returncode != 0


def test_a_node_with_a_gpu_stays_within_the_bounds(installed: Path) -> None:
    folder = installed / "fedsim-client.service.d"
    folder.mkdir()
    shutil.copy(installed / "examples" / "gpu.conf", folder / "20-gpu.conf")
    done = exposure(installed, "fedsim-client.service")
    assert done.returncode == 0, done.stdout
    verified = run(program("systemd-analyze"), "verify", "--man=no", installed / "fedsim-client.service")
    assert (verified.returncode, verified.stderr) == (0, "")


def test_enabling_a_node_enables_its_pair_and_the_target_pulls_exactly_those(tmp_path: Path) -> None:
    place = tmp_path / "etc" / "systemd" / "system"
    shutil.copytree(UNITS, place)
    done = run(program("systemctl"), f"--root={tmp_path}", "enable", "fedsim.target", "fedsim-client@lab-a.service")
    assert done.returncode == 0, done.stderr
    pulled = {path.name for path in (place / "fedsim.target.wants").iterdir()}
    instance = {"fedsim-client@lab-a.service", "fedsim-receiver@lab-a.service", "fedsim-receiver@lab-a.socket"}
    assert pulled == instance
    assert (place / "multi-user.target.wants" / "fedsim.target").is_symlink()


# ---------------------------------------------------------------- one with another


@pytest.mark.parametrize("name", [*SERVICES, *SOCKETS])
def test_the_target_starts_and_stops_every_unit(name: str) -> None:
    assert unit(name)["PartOf"] == ["fedsim.target"]
    assert unit(name)["WantedBy"] == ["fedsim.target"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_notified_watched_tried_again_and_never_loops_on_a_wrong_file(name: str) -> None:
    told = unit(name)
    assert told["Type"] == ["notify"]
    assert told["WatchdogSec"] == ["60"]
    assert told["Restart"] == ["on-failure"]
    assert told["RestartPreventExitStatus"] == [str(EX_CONFIG)]
    assert int(told["TimeoutStopSec"][0]) <= 20
    # Tries with a pause stay below the limit, so that only those without one end at it.
    limit, interval = int(told["StartLimitBurst"][0]), int(told["StartLimitIntervalSec"][0])
    assert interval / int(told["RestartSec"][0]) < limit


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_reads_the_file_of_its_name_and_its_secrets_only_as_credentials(name: str) -> None:
    told = unit(name)
    daemon = re.sub(r"fedsim-|@|\.service", "", name)
    folder = "/etc/fedsim/%i" if "@" in name else "/etc/fedsim"
    assert told["ExecStart"] == [f"/opt/fedsim/current/bin/fedsim-{daemon} --config {folder}/{daemon}.yml"]
    assert (ROOT / "etc" / "fedsim" / f"{daemon}.yml").is_file()
    loaded = dict(value.split(":", 1) for value in told["LoadCredential"])
    own = "web.key" if daemon == "web" else "host.key"
    wanted = {"tls.key": f"{folder}/pki/{own}"}
    if secret := {"server": "database", "web": "database-web"}.get(daemon):
        wanted[secret] = f"/etc/fedsim/secrets/{secret}"
    assert loaded == wanted
    assert told["Environment"] == ["FEDSIM_CREDENTIALS=/run/fedsim/%n:%d"]
    # A reload brings them anew, as root, to where no daemon can write, and only then tells the daemon.
    (user,) = told["User"]
    recorded, *copies, signal = told["ExecReload"]
    record = "-+/opt/fedsim/current/bin/python -I -m fedsim_fleet.on_host.units record"
    assert (told["ExecStartPre"], recorded) == ([f"{record} %n"], f"{record} --reload %n")
    assert copies == [
        f"-+/usr/bin/install -D -o {user} -m 0400 {source} /run/fedsim/%n/{name}" for name, source in wanted.items()
    ]
    assert signal == "/bin/kill -HUP $MAINPID"
    assert told["ExecStopPost"] == ["+/bin/rm -rf /run/fedsim/%n"]
    assert not any("fedsim" in path for path in told.get("RuntimeDirectory", []))


@pytest.mark.parametrize("name", SOCKETS)
def test_a_socket_has_its_service_and_the_port_of_the_sample(name: str) -> None:
    service = name.replace(".socket", ".service")
    instance = name.replace("@", "@%i") if "@" in name else name
    assert unit(service)["Requires"] == [instance]
    assert unit(service)["Also"] == [instance]
    if "@" not in name:
        listen = sample(name.removeprefix("fedsim-").removesuffix(".socket"))["listen"]
        assert isinstance(listen, dict)
        assert unit(name)["ListenStream"] == [f"{listen['address']}:{listen['port']}"]


def test_a_daemon_writes_its_own_spool_and_a_receiver_sees_no_data() -> None:
    server, client, receiver = sample("server"), sample("client"), unit("fedsim-receiver.service")
    assert unit("fedsim-server.service")["ReadWritePaths"] == [server["spool"]]
    assert unit("fedsim-client.service")["ReadWritePaths"] == [f"{client['spool']} -/run/fedsim-owner"]
    assert receiver["ReadWritePaths"] == [f"-{server['spool']} -{client['spool']}"]
    assert receiver["InaccessiblePaths"] == [f"-{server['data']} -{client['data']}"]
    assert unit("fedsim-client@.service")["StateDirectory"] == unit("fedsim-receiver@.service")["StateDirectory"]


def test_only_a_node_sees_which_unix_user_decides_and_only_their_group_reaches_it() -> None:
    hidden = {name: "yes" in unit(name).get("PrivateUsers", []) for name in SERVICES}
    assert {name for name, there in hidden.items() if not there} == {"fedsim-client.service", "fedsim-client@.service"}
    (folders,) = (UNITS / "tmpfiles.d").glob("*.conf")
    assert "d /run/fedsim-owner 2750 fedsim fedsim-owner" in folders.read_text(encoding="utf-8").splitlines()


def test_the_web_has_a_user_of_its_own_that_sees_only_checkpoints_and_writes_nothing() -> None:
    told = unit("fedsim-web.service")
    assert told["User"] == ["fedsim-web"]
    assert told["TemporaryFileSystem"] == ["/var/lib/fedsim:ro"]
    assert told["BindReadOnlyPaths"] == [f"-{sample('web')[folder]}" for folder in ("checkpoints", "models")]
    assert "ReadWritePaths" not in told
    assert "StateDirectory" not in told


@pytest.mark.parametrize("name", SERVICES)
def test_memory_that_is_written_and_run_is_denied_wherever_torch_does_not_work(name: str) -> None:
    with_torch = "server" in name or "client" in name
    assert unit(name).get("MemoryDenyWriteExecute") == (None if with_torch else ["yes"])


# ---------------------------------------------------------------- users and folders


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A root folder with our users and folders, made as at a host's start."""
    if os.geteuid() != 0:
        missing("users and folders of a host must be made: run as root")
    root = tmp_path / "host"
    (root / "etc").mkdir(parents=True)
    for name in ("passwd", "group"):
        (root / "etc" / name).write_text(f"root:x:0:{'' if name == 'group' else '0:root:/root:/bin/sh'}\n")
    for tool, folder, options in (
        ("systemd-sysusers", "sysusers.d", ()),
        ("systemd-tmpfiles", "tmpfiles.d", ("--create",)),
    ):
        done = run(program(tool), f"--root={root}", *options, UNITS / folder / "fedsim.conf")
        assert done.returncode == 0, done.stderr
    return root


def ids(path: Path) -> dict[str, int]:
    return {line.split(":")[0]: int(line.split(":")[2]) for line in path.read_text().splitlines()}


def test_users_and_folders_are_as_the_units_need_them(host: Path) -> None:
    users, groups = ids(host / "etc" / "passwd"), ids(host / "etc" / "group")
    for name in SERVICES:
        assert unit(name)["User"][0] in users
    members = next(line for line in (host / "etc" / "group").read_text().splitlines() if "checkpoints" in line)
    assert set(members.split(":")[3].split(",")) == {"fedsim", "fedsim-web"}

    def folder(path: str) -> tuple[str, int, int]:
        seen = (host / path.lstrip("/")).stat()
        return oct(stat.S_IMODE(seen.st_mode)), seen.st_uid, seen.st_gid

    fedsim = (users["fedsim"], groups["fedsim"])
    assert folder(str(sample("server")["spool"])) == ("0o750", *fedsim)
    assert folder(str(sample("client")["spool"])) == ("0o750", *fedsim)
    checkpoints = folder(str(sample("web")["checkpoints"]))
    assert checkpoints == ("0o2750", users["fedsim"], groups["fedsim-checkpoints"])
    assert folder("/run/fedsim") == ("0o755", 0, 0), "no daemon plants anything where its key is read"
    assert folder("/etc/fedsim/secrets") == ("0o700", 0, 0)
