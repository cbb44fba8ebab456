"""`fedsim-fleet` without hosts: the inventory, the diagnosis, the order of journal entries, data sets."""

from __future__ import annotations

import json
import queue
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import islice
from pathlib import Path

import pytest
from cryptography import x509

from fedsim.errors import BadInput, NotThere, Unavailable
from fedsim.spool.files import Role
from fedsim_fleet.certificates import make_authority, make_certificate, make_revocation_list, new_key, pem
from fedsim_fleet.fleet import journals, push
from fedsim_fleet.fleet.doctor import Finding, Lab, PublishedAuthority, diagnose, required_peers
from fedsim_fleet.fleet.inventory import Host, read_inventory, select_hosts
from fedsim_fleet.fleet.journals import Entry
from fedsim_fleet.fleet.report import FileSystem, HostReport
from fedsim_fleet.fleet.status import is_healthy, row
from fedsim_fleet.on_host import receive
from fedsim_fleet.on_host import report as on_host

CHECKOUT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 25, tzinfo=UTC)
KEY = new_key()
AUTHORITY = make_authority(KEY, "lab", NOW, 3650)


def host(name: str, *, server: bool = False) -> Host:
    services = ["fedsim-receiver", "fedsim-server" if server else "fedsim-client"]
    return Host(name=name, is_server=server, ansible_host=f"198.18.0.{len(name)}", fedsim_services=services)


SERVER, NODE = host("server", server=True), host("node-a")


def certificate(name: str, role: Role, days: int = 365, after: timedelta = timedelta(0)) -> str:
    made: x509.Certificate = make_certificate(AUTHORITY, KEY, new_key().public_key(), name, role, NOW + after, days)
    return pem(made).decode()


FOREIGN = pem(make_certificate(AUTHORITY, new_key(), new_key().public_key(), "node-a", Role.CLIENT, NOW, 90)).decode()


def report(of: Host, **changes: object) -> HostReport:
    """The report of a healthy host."""
    role = Role.SERVER if of.is_server else Role.CLIENT
    answer = {
        "clock": NOW.timestamp(),
        "duration": 0.1,
        "version": "0.1.0",
        "units": [
            {"name": name, "loaded": True, "state": "active", "sub": "running", "enabled": "enabled", "status": "",
             "restarts": 0} for name in of.units
        ],
        "disk": {"free": 10**11, "all": 10**12},
        "memory": {"free": 10**10, "all": 10**10},
        "gpus": [],
        "certificates": [
            {"path": "/etc/fedsim/pki/ca.crt", "pem": pem(AUTHORITY).decode(), "problem": "", "key": False},
            {"path": "/etc/fedsim/pki/host.crt", "pem": certificate(of.name, role), "problem": "", "key": True},
        ],
        "revoked": sha256(LIST).hexdigest(),
        "metrics": {"server" if of.is_server else "client": {
            'fedsim_node_online{node="node-a"}': 1.0, "fedsim_dataset_problems": 0,
        }},
        "diagnostics": {
            "failed": [], "unwritable": [], "configurations": [],
            "connections": [], "datasets": [], "pages": "", "killed": [], "synchronised": "yes",
            "inotify": {"instances": 128, "watches": 8192},
        },
    }  # fmt: skip
    return HostReport.model_validate({**answer, **changes})


REVOKED = make_certificate(AUTHORITY, KEY, new_key().public_key(), "node-a", Role.CLIENT, NOW, 90)
LIST = pem(make_revocation_list(AUTHORITY, KEY, [(REVOKED.serial_number, NOW)], 1, NOW))
LABS = PublishedAuthority.of(pem(AUTHORITY), LIST)


def findings(*reports: tuple[Host, HostReport]) -> list[Finding]:
    lab = Lab([of for of, _ in reports], LABS, NOW.timestamp())
    return diagnose({of.name: answer for of, answer in reports}, lab)


def problems_of_node(**changes: object) -> str:
    return "\n".join(finding.problem for finding in findings((NODE, report(NODE, **changes))))


def diagnostics(**changes: object) -> dict[str, object]:
    answer = report(NODE).diagnostics
    assert answer is not None
    return {**answer.model_dump(), **changes}


def file_system(folder: str, free: int, **changes: object) -> dict[str, object]:
    seen = {"use": "spool", "device": "1", "free": free, "all": 10**12, "entries": -1, "readonly": False}
    return {"folder": folder, **seen, **changes}


# ---------------------------------------------------------------- the inventory


def test_hosts_come_from_the_inventory_with_the_variables_of_their_groups() -> None:
    hosts = read_inventory(CHECKOUT / "ansible" / "inventory" / "example.yml")
    assert [one.name for one in hosts] == ["server", "node-a", "node-b", "node-c"]
    assert [one.is_server for one in hosts] == [True, False, False, False]
    assert hosts[1].reached_at == "198.18.0.11"
    assert hosts[1].user == "root"
    assert hosts[1].units == ("fedsim-receiver", "fedsim-client")
    assert [data.name for data in hosts[1].datasets] == ["digits"]


def test_variables_of_the_inventory_override_defaults(tmp_path: Path) -> None:
    lab = (CHECKOUT / "ansible" / "inventory" / "example.yml").read_text(encoding="utf-8")
    lab = lab.replace(
        "  vars:\n    ansible_user: root\n", "  vars:\n    ansible_user: root\n    fedsim_node_port: 9999\n"
    )
    own = tmp_path / "lab.yml"
    own.write_text(lab.replace("      vars:\n", "      vars:\n        fedsim_metrics_port: {client: 9998}\n"))
    for host in read_inventory(own)[1:]:
        assert host.receiver_port == 9999
        assert host.metrics_port == {"client": 9998}


def test_an_invalid_inventory_is_rejected_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(NotThere, match="FEDSIM_INVENTORY"):
        read_inventory(tmp_path / "none.yml")
    other = tmp_path / "other.yml"
    other.write_text("all: {hosts: {other: {}}}\n")
    with pytest.raises(BadInput, match="no hosts in the groups fedsim_server"):
        read_inventory(other)
    other.write_text("fedsim_nodes: {hosts: {a: {ansible_port: 70000}}}\n")
    with pytest.raises(BadInput, match="the host a has invalid variables: ansible_port"):
        read_inventory(other)
    other.write_text("fedsim_nodes: [")
    with pytest.raises(BadInput, match="Ansible cannot read"):
        read_inventory(other)


def test_a_host_that_is_not_in_the_inventory_is_named() -> None:
    assert select_hosts([SERVER, NODE], ("node-a",)) == [NODE]
    with pytest.raises(BadInput, match=r"not in the inventory: node-x \(available: node-a, server\)"):
        select_hosts([SERVER, NODE], ("node-a", "node-x"))


def test_server_and_nodes_must_reach_each_other() -> None:
    other = host("node-bb")
    assert required_peers(SERVER, [SERVER, NODE, other]) == [("198.18.0.6", 9002), ("198.18.0.7", 9002)]
    assert required_peers(NODE, [SERVER, NODE, other]) == [("198.18.0.6", 9001)]


# ---------------------------------------------------------------- diagnosis


def test_a_healthy_lab_has_no_findings() -> None:
    assert findings((SERVER, report(SERVER)), (NODE, report(NODE))) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"diagnostics": diagnostics(file_systems=[file_system("/srv/spool", 10**9)])},
            "only 1.0 GB of 1.0 TB are free on the file system of /srv/spool, 2.0 GB are needed",
        ),
        (
            {"diagnostics": diagnostics(file_systems=[file_system("/a", 10**9), file_system("/b", 0, use="logs")])},
            "only 1.0 GB of 1.0 TB are free on the file system of /a, /b, 2.2 GB are needed",
        ),
        (
            {"diagnostics": diagnostics(file_systems=[file_system("/scratch", 10**7, use="temporary", all=10**7)])},
            "the file system of /scratch has only 10.0 MB, 100.0 MB are needed",
        ),
        (
            {"diagnostics": diagnostics(file_systems=[file_system("/var/lib/fedsim/client", 10**11, entries=3)])},
            "only 3 more files fit on the file system of /var/lib/fedsim/client",
        ),
        (
            {"diagnostics": diagnostics(file_systems=[file_system("/srv/spool", 10**11, readonly=True)])},
            "the file system of /srv/spool is mounted read-only",
        ),
        ({"memory": {"free": 10**8, "all": 10**10}}, "only 100.0 MB of 10.0 GB of memory are available"),
        ({"version": ""}, "fedsim is not installed"),
        ({"revoked": "older"}, "its certificate revocation list is out of date"),
        ({"metrics": {"client": {}}}, "the client does not serve its metrics"),
        ({"metrics": {"client": {"fedsim_dataset_problems": 2}}}, "2 of its data sets cannot be used"),
        ({"certificates": []}, "it has no certificate"),
        ({"diagnostics": diagnostics(failed=["fedsim-client@lab-a"])}, "fedsim-client@lab-a has failed"),
        ({"diagnostics": diagnostics(unwritable=["/var/lib/fedsim/client"])}, "cannot write /var/lib/fedsim/client"),
        (
            {"diagnostics": diagnostics(killed=["Out of memory: Killed process 7"])},
            "memory was exhausted: Out of memory: Killed",
        ),
        ({"diagnostics": diagnostics(inotify={"instances": 8, "watches": 9})}, "have only 8 inotify instances"),
        (
            {"diagnostics": diagnostics(datasets=[{"path": "/d", "problem": "is not there"}])},
            "the data set /d (/d) is not there",
        ),
        (
            {
                "diagnostics": diagnostics(
                    configurations=[{"path": "/etc/fedsim/client.yml", "valid": False, "output": "nam: unknown"}]
                )
            },
            "/etc/fedsim/client.yml is not valid: nam: unknown",
        ),
        (
            {
                "diagnostics": diagnostics(
                    connections=[{"address": "198.18.0.6", "port": 9001, "problem": "Connection refused"}]
                )
            },
            "it cannot reach 198.18.0.6 at 198.18.0.6:9001: Connection refused",
        ),
    ],
)
def test_each_problem_of_a_host_is_found(changes: dict[str, object], problem: str) -> None:
    assert problem in problems_of_node(**changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"loaded": False}, "fedsim-client is not installed"),
        ({"state": "failed", "sub": "failed", "lines": ["no room"]}, "is failed (failed); last log lines: no room"),
        ({"enabled": "disabled"}, "fedsim-client does not start with the host (disabled)"),
    ],
)
def test_each_problem_of_a_unit_is_found(changes: dict[str, object], problem: str) -> None:
    units = [one.model_dump() for one in report(NODE).units]
    assert problem in problems_of_node(units=[units[0], {**units[1], **changes}])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (certificate("node-b", Role.CLIENT), "host.crt belongs to client node-b, not to client node-a"),
        (certificate("node-a", Role.SERVER), "host.crt belongs to server node-a, not to client node-a"),
        (pem(AUTHORITY).decode(), "host.crt was not issued by fedsim-ca"),
        (pem(REVOKED).decode(), "host.crt is revoked"),
        (certificate("node-a", Role.CLIENT, after=timedelta(hours=1)), "host.crt is not valid yet"),
        (certificate("node-a", Role.CLIENT, days=5), "host.crt expires in 5 days"),
        (certificate("node-a", Role.CLIENT, days=0), "host.crt has expired"),
        ("-----BEGIN NOTHING-----", "is not a certificate"),
        (
            FOREIGN,
            "is not signed by the lab's authority",
        ),
    ],
)  # fmt: skip
def test_each_problem_of_a_certificate_is_found(text: str, problem: str) -> None:
    file = {"path": "/etc/fedsim/pki/host.crt", "pem": text, "problem": "", "key": True}
    assert problem in problems_of_node(certificates=[file])


def test_small_differences_of_a_clock_are_ignored() -> None:
    slow = report(NODE).model_copy(update={"skew": -40.0})
    assert [found.problem for found in findings((NODE, slow))] == ["its clock differs by -40 s from this machine's"]
    assert findings((NODE, report(NODE).model_copy(update={"skew": 2.0}))) == []


def test_a_server_names_missing_nodes_and_what_it_waits_for() -> None:
    numbers = {"server": {'fedsim_node_online{node="node-a"}': 0.0, 'fedsim_waiting{for="database"}': 1.0}}
    answer = [found.problem for found in findings((SERVER, report(SERVER, metrics=numbers)), (NODE, report(NODE)))]
    assert answer == ["the server has not heard from node-a recently", "the server waits for database"]


def test_an_offline_node_of_another_institution_is_found() -> None:
    online = {'fedsim_node_online{node="node-a"}': 1.0, 'fedsim_node_online{node="hospital"}': 0.0}
    (found,) = findings((SERVER, report(SERVER, metrics={"server": online})), (NODE, report(NODE)))
    assert found.problem == "the server has not heard from hospital recently"
    assert found.remedy == "ask the institution that deploys hospital"


def test_a_dead_host_and_different_versions_are_found() -> None:
    lab = Lab([SERVER, NODE], None, NOW.timestamp())
    dead = diagnose({"server": report(SERVER), "node-a": Unavailable("the cable is out")}, lab)
    assert dead == [Finding("node-a", "it does not answer", "the cable is out")]
    (found,) = diagnose({"server": report(SERVER, version="0.2.0"), "node-a": report(NODE)}, lab)
    assert found.problem == "hosts have different versions: 0.1.0 on node-a; 0.2.0 on server"


def test_the_status_table_names_inactive_units() -> None:
    units = [{**one.model_dump(), "state": "failed"} for one in report(NODE).units]
    bad = report(NODE, units=units)
    line = row("node-a", bad, (NOW + timedelta(days=5)).timestamp())
    assert line[:3] == ["node-a", "receiver failed, client failed", "0.1.0"]
    assert line[-1] == "360 days"
    assert not is_healthy(bad)
    assert is_healthy(report(NODE))
    assert row("node-a", Unavailable("no route\nmore"), 0)[1:4] == ["does not answer", "–", "no route"]


# ---------------------------------------------------------------- journals


def entry(at: int, host: str = "a") -> Entry:
    return Entry(at, host, "fedsim-server", f"at {at}", 6)


def test_journals_are_merged_by_time() -> None:
    streams = [iter([entry(1), entry(4)]), iter([entry(2, "b"), entry(3, "b"), entry(9, "b")])]
    assert [one.at for one in journals.merged(streams)] == [1, 2, 3, 4, 9]


def test_while_following_an_entry_waits_for_an_earlier_one_of_another_host() -> None:
    arrived: queue.Queue[Entry] = queue.Queue()
    for one in (entry(5), entry(3, "b"), entry(9, "b")):
        arrived.put(one)
    assert [one.at for one in islice(journals.in_order(arrived), 3)] == [3, 5, 9]


def test_while_following_the_last_entry_is_shown_without_a_later_one() -> None:
    arrived: queue.Queue[Entry] = queue.Queue()
    arrived.put(entry(5))
    assert next(journals.in_order(arrived)).at == 5


def test_an_interrupted_journal_continues_after_its_last_entry() -> None:
    question = journals.JournalQuery(task=7, since="yesterday")
    assert question.following("")[-5:] == [
        "--no-pager", "FEDSIM_TASK=7", "--since=yesterday", "--follow", "--no-tail"
    ]  # fmt: skip
    # journalctl rejects a time together with a cursor.
    assert question.following("s=1;i=2")[-4:] == ["FEDSIM_TASK=7", "--after-cursor=s=1;i=2", "--follow", "--no-tail"]


def test_a_journal_entry_is_parsed_and_other_text_is_ignored() -> None:
    line = {"__REALTIME_TIMESTAMP": "1700000000000001", "MESSAGE": "ready", "_SYSTEMD_UNIT": "fedsim-server.service"}
    assert journals.parse("a", json.dumps(line)) == Entry(1700000000000001, "a", "fedsim-server", "ready", 6)
    binary = journals.parse("a", json.dumps({**line, "MESSAGE": [27, 91, 49], "PRIORITY": "3"}))
    assert binary is not None
    shown = journals.render(binary, {"a": "cyan"}, 1).plain
    assert "\x1b" not in shown
    assert replace(binary, text="") == Entry(1700000000000001, "a", "fedsim-server", "", 3)
    for strange in ("", "{", "[]", '{"MESSAGE": "x"}', '{"__REALTIME_TIMESTAMP": "x"}', "7"):
        assert journals.parse("a", strange) is None


# ---------------------------------------------------------------- data


def node(name: str) -> Host:
    data = {"name": "credit", "path": "credit.csv", "format": "csv"}
    return host(name).model_copy(update={"datasets": Host(name=name, is_server=False, fedsim_datasets=[data]).datasets})


def test_all_nodes_get_the_same_or_each_its_own(tmp_path: Path) -> None:
    nodes = [node("node-a"), node("node-b")]
    assert push.sources(nodes, "credit", tmp_path) == {"node-a": tmp_path, "node-b": tmp_path}
    (tmp_path / "node-a.csv").write_text("a")
    with pytest.raises(BadInput, match="files of its own for node-a, but none for node-b"):
        push.sources(nodes, "credit", tmp_path)
    (tmp_path / "node-b").mkdir()
    assert push.sources(nodes, "credit", tmp_path) == {
        "node-a": tmp_path / "node-a.csv",
        "node-b": tmp_path / "node-b",
    }
    with pytest.raises(BadInput, match="node-a has no data set mnist with files in the inventory"):
        push.sources(nodes, "mnist", tmp_path)


def test_a_data_set_is_a_file_or_a_folder_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    with pytest.raises(BadInput, match="is empty"):
        push.files_of(folder)
    (folder / "inner" / "b").write_bytes(b"bb")
    (folder / "a").write_bytes(b"")
    assert [(file.name, file.size) for file in push.files_of(folder)] == [("a", 0), ("inner/b", 2)]
    assert [(file.name, file.size) for file in push.files_of(folder / "inner" / "b")] == [("", 2)]
    (folder / "link").symlink_to("a")
    with pytest.raises(BadInput, match="is not a regular file"):
        push.files_of(folder)
    with pytest.raises(NotThere, match="does not exist"):
        push.files_of(tmp_path / "none")


def test_data_is_not_sent_to_a_host_without_fedsim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "INSTALLED", tmp_path / "current")
    with pytest.raises(SystemExit, match=r"fedsim is not installed on this host yet: run site.yml, then push again"):
        receive.main(tmp_path / "data" / "credit.csv")
    assert not (tmp_path / "data").exists()


def test_the_folders_of_the_configuration_are_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab-a").mkdir()
    (tmp_path / "lab-a" / "client.yml").write_text(
        f"name: a\nspool: {tmp_path}\ndata: '{tmp_path}/lab-a'\nx: {{spool: /}}\n"
    )
    monkeypatch.setattr(on_host, "CONFIGURATION", tmp_path)
    found = {one["folder"]: one for one in on_host.file_systems()}
    assert found[str(tmp_path)]["use"] == "spool"
    assert found[f"{tmp_path}/lab-a"]["use"] == "data"
    assert found["/var/log"]["use"] == "logs"
    assert "/" not in found
    assert all(FileSystem.model_validate(one).all > 0 for one in found.values())
