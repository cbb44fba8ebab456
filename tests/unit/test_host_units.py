"""What a unit runs with is compared with its files: each difference leads to a restart or a reload, exactly once."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from fedsim_fleet.on_host import units

CLIENT, SOCKET = "fedsim-client.service", "fedsim-receiver.socket"


class FakeSystemd:
    """systemctl and journalctl; starting and reloading a unit records its files, as the unit files say."""

    def __init__(self) -> None:
        self.state: dict[str, str] = {}
        self.enabled: set[str] = set()
        self.stale: set[str] = set()
        self.broken: dict[str, str] = {}  # units that do not start, with what they log
        self.events: dict[str, str] = {}  # events that a reload logs
        self.commands: list[str] = []

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        if command[0] == "timeout":
            command = command[2:]
        program, verb, *arguments = command
        unit = command[-1]
        output, code = "", 0
        if program == "journalctl":
            own = next((word.partition("=")[2] for word in command if word.startswith("_SYSTEMD_UNIT")), "")
            event = next((word.partition("=")[2] for word in command if word.startswith("FEDSIM_EVENT")), "")
            logged = self.events.get(own, "") if event else self.broken.get(own, "")
            output = logged if event in logged else ""
        elif verb == "show":
            state = {
                "ActiveState": self.state.get(unit, "inactive"),
                "UnitFileState": "enabled" if unit in self.enabled else "disabled",
                "NeedDaemonReload": "yes" if unit in self.stale else "no",
                "FragmentPath": str(units.SYSTEMD / unit),
                "DropInPaths": "",
            }
            output = "".join(f"{key}={value}\n" for key, value in state.items())
        elif verb in {"start", "restart", "reload"}:
            self.commands.append(f"{verb} {unit}")
            code = int(unit in self.broken)
            self.state[unit] = "failed" if code else "active"
            if unit.startswith("fedsim") and not unit.endswith((".target", ".timer")):
                units.record(unit, reload=verb == "reload")
        elif verb == "stop":
            self.state |= dict.fromkeys(arguments, "inactive")
        elif verb == "disable":
            self.state[unit] = "inactive"
            self.enabled.discard(unit)
        elif verb == "enable":
            self.enabled.add(unit)
        elif verb == "daemon-reload":
            self.stale.clear()
        return subprocess.CompletedProcess(command, code, output)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    for name in ("RECORDS", "OTHER_RECORDS", "CONFIGURATION", "CURRENT", "SYSTEMD", "SITE", "ENABLED_SITE", "DATABASE"):
        monkeypatch.setattr(units, name, tmp_path / name.lower())
    (tmp_path / "configuration" / "pki").mkdir(parents=True)
    (tmp_path / "version").mkdir()
    units.CURRENT.symlink_to("version")
    units.SYSTEMD.mkdir()
    systemd = FakeSystemd()
    monkeypatch.setattr(units, "run", systemd)
    return systemd


def converge(*names: str, reload: bool = False) -> list[str]:
    return units.converge(list(names), reload_configuration=reload)


def write(name: str, text: str) -> None:
    (units.CONFIGURATION / name).write_text(text, encoding="utf-8")


def test_units_are_enabled_and_started_once(systemd: FakeSystemd) -> None:
    names = (SOCKET, CLIENT, "fedsim.target", "nginx.service")
    assert [line for line in converge(*names) if line.startswith("start")] == [f"start {name}" for name in names]
    assert systemd.enabled == set(names)
    assert converge(*names) == []


CHANGES = {
    "configuration": ("configuration/client.yml", "restart"),
    "credentials": ("configuration/pki/host.crt", "reload"),
    "unit": (f"systemd/{CLIENT}", "restart"),
    "version": ("current/installed-1", "restart"),  # gathered again under the same version
    "unfinished": ("configuration/pki/host.key.new", ""),
    "another daemon's": ("configuration/receiver.yml", ""),
}


@pytest.mark.parametrize(("file", "verb"), CHANGES.values(), ids=CHANGES)
def test_each_kind_of_file_that_changed_leads_to_a_restart_or_a_reload(
    systemd: FakeSystemd, tmp_path: Path, file: str, verb: str
) -> None:
    converge(SOCKET, CLIENT)
    (tmp_path / file).write_text("other", encoding="utf-8")
    assert list(units.compare([CLIENT])) == ([CLIENT] if verb else [])
    assert converge(SOCKET, CLIENT) == ([f"{verb} {CLIENT}"] if verb else [])
    assert units.compare([CLIENT]) == {}
    assert systemd.state[CLIENT] == "active"


@pytest.mark.parametrize("kind", ["unit", "version"])
def test_a_reload_by_hand_does_not_hide_what_needs_a_restart(systemd: FakeSystemd, tmp_path: Path, kind: str) -> None:
    converge(CLIENT)
    (tmp_path / CHANGES[kind][0]).write_text("other", encoding="utf-8")
    systemd("systemctl", "reload", CLIENT)
    assert units.compare([CLIENT]) == {CLIENT: [kind]}
    assert converge(CLIENT) == [f"restart {CLIENT}"]


def test_a_definition_that_systemd_has_not_read_leads_to_a_restart(systemd: FakeSystemd) -> None:
    converge(SOCKET, CLIENT)
    systemd.stale = {CLIENT}
    assert converge(SOCKET, CLIENT) == ["daemon-reload", f"restart {CLIENT}"]


def test_a_timer_is_started_once_and_stopped_on_request(systemd: FakeSystemd) -> None:
    timer = "fedsim_backup.timer"
    assert converge(timer) == [f"enable {timer}", f"start {timer}"]
    assert converge(timer) == []
    systemd.stale = {"fedsim_backup.service"}
    assert converge(timer) == ["daemon-reload", f"restart {timer}"]
    assert converge(f"-{timer}") == [f"disable {timer}"]
    assert converge(f"-{timer}") == []


def test_the_configuration_can_be_reloaded_and_what_a_reload_cannot_change_restarts(systemd: FakeSystemd) -> None:
    converge(CLIENT)
    write("client.yml", "name: b")
    assert converge(CLIENT, reload=True) == [f"reload {CLIENT}"]
    write("client.yml", "name: c")
    systemd.events[CLIENT] = "restart_needed"
    assert converge(CLIENT, reload=True) == [f"restart {CLIENT}"]


def test_a_socket_opens_again_only_without_its_service(systemd: FakeSystemd) -> None:
    systemd.enabled = {SOCKET, "fedsim-receiver.service"}
    converge(SOCKET, "fedsim-receiver.service")
    (units.SYSTEMD / SOCKET).write_text("[Socket]", encoding="utf-8")
    assert converge(SOCKET, "fedsim-receiver.service") == [f"start {SOCKET}", "start fedsim-receiver.service"]


def test_nginx_reloads_for_its_site_and_the_certificate_that_it_names(systemd: FakeSystemd, tmp_path: Path) -> None:
    assert systemd.state == {}
    certificate = tmp_path / "web.crt"
    units.SITE.write_text(f"server {{\n    ssl_certificate {certificate};\n}}\n", encoding="utf-8")
    converge("nginx.service")
    certificate.write_text("renewed", encoding="utf-8")
    assert units.compare(["nginx.service"]) == {}  # the program that renewed it may have reloaded nginx
    assert converge("nginx.service") == ["reload nginx.service"]
    units.SITE.write_text("another", encoding="utf-8")
    assert units.compare(["nginx.service"]) == {"nginx.service": ["configuration"]}
    assert converge("nginx.service") == ["reload nginx.service"]
    assert converge("nginx.service") == []


@pytest.mark.parametrize("verb", ["start", "reload"])
def test_a_unit_that_does_not_start_or_reload_is_reported_in_its_own_words_and_tried_again(
    systemd: FakeSystemd, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    words = "At 'server': the port is missing"
    if verb == "reload":
        converge(CLIENT)
        write("pki/host.crt", "damaged")
        systemd.events[CLIENT] = f"reload_failed: {words}"
    else:
        systemd.broken[CLIENT] = words
    monkeypatch.setattr("sys.argv", ["units.py", "converge", CLIENT])
    assert units.main() == 1
    printed = capsys.readouterr().out
    assert f"{CLIENT} does not {verb}" in printed
    assert words in printed
    systemd.broken.clear()
    systemd.events.clear()
    assert units.main() == 0
    assert CLIENT in json.loads(capsys.readouterr().out)[-1]
    assert converge(CLIENT) == []


def test_the_firewall_is_reloaded_for_new_rules_and_restarted_for_new_peers(
    systemd: FakeSystemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = tmp_path / "firewall.nft"
    monkeypatch.setattr(units, "RULES", (rules,))
    assert converge(units.FIREWALL) == [f"enable {units.FIREWALL}", f"start {units.FIREWALL}"]
    assert converge(units.FIREWALL) == []
    write("secrets", "of no interest to it")
    assert converge(units.FIREWALL) == []
    rules.write_text("rules")
    assert converge(units.FIREWALL) == [f"reload {units.FIREWALL}"]
    (units.SYSTEMD / units.FIREWALL).write_text("another peer")
    assert converge(units.FIREWALL) == [f"restart {units.FIREWALL}"]
    assert converge(f"-{units.FIREWALL}") == [f"disable {units.FIREWALL}"]
    assert systemd.state[units.FIREWALL] == "inactive"
