"""The fleet's own reasoning: which hosts there are, what is wrong with one, in which order journals are told."""

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
from fedsim_fleet.fleet.doctor import Finding, Lab, PublishedAuthority, diagnose, ways_from
from fedsim_fleet.fleet.inventory import Host, chosen, read_inventory
from fedsim_fleet.fleet.journals import Entry
from fedsim_fleet.fleet.report import HostReport
from fedsim_fleet.fleet.status import row, well

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
    """What a host tells that is well."""
    role = Role.SERVER if of.is_server else Role.CLIENT
    told = {
        "clock": NOW.timestamp(),
        "took": 0.1,
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
        "deep": {
            "failed": [], "unwritable": [], "configurations": [],
            "ways": [], "datasets": [], "pages": "", "killed": [], "synchronised": "yes",
            "watches": {"instances": 128, "watches": 8192},
        },
    }  # fmt: skip
    return HostReport.model_validate({**told, **changes})


REVOKED = make_certificate(AUTHORITY, KEY, new_key().public_key(), "node-a", Role.CLIENT, NOW, 90)
LIST = pem(make_revocation_list(AUTHORITY, KEY, [(REVOKED.serial_number, NOW)], 1, NOW))
LABS = PublishedAuthority.of(pem(AUTHORITY), LIST)


def findings(*reports: tuple[Host, HostReport]) -> list[Finding]:
    lab = Lab([of for of, _ in reports], LABS, NOW.timestamp())
    return diagnose({of.name: told for of, told in reports}, lab)


def problems_of_node(**changes: object) -> str:
    return "\n".join(finding.problem for finding in findings((NODE, report(NODE, **changes))))


def deep(**changes: object) -> dict[str, object]:
    told = report(NODE).deep
    assert told is not None
    return {**told.model_dump(), **changes}


# ---------------------------------------------------------------- the inventory


def test_hosts_come_from_the_inventory_with_the_variables_of_their_groups() -> None:
    hosts = read_inventory(CHECKOUT / "ansible" / "inventory" / "lab.yml")
    assert [one.name for one in hosts] == ["server", "node-a", "node-b", "node-c"]
    assert [one.is_server for one in hosts] == [True, False, False, False]
    assert hosts[1].reached_at == "198.18.0.11"
    assert hosts[1].user == "root"
    assert hosts[1].units == ("fedsim-receiver", "fedsim-client")
    assert [data.name for data in hosts[1].datasets] == ["digits"]


def test_what_the_inventory_says_for_all_or_a_group_counts_more_than_a_default(tmp_path: Path) -> None:
    lab = (CHECKOUT / "ansible" / "inventory" / "lab.yml").read_text(encoding="utf-8")
    lab = lab.replace(
        "  vars:\n    ansible_user: root\n", "  vars:\n    ansible_user: root\n    fedsim_node_port: 9999\n"
    )
    own = tmp_path / "lab.yml"
    own.write_text(lab.replace("      vars:\n", "      vars:\n        fedsim_metrics_port: {client: 9998}\n"))
    for host in read_inventory(own)[1:]:
        assert host.receiver_port == 9999
        assert host.metrics_port == {"client": 9998}


def test_what_is_wrong_with_an_inventory_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotThere, match="FEDSIM_INVENTORY"):
        read_inventory(tmp_path / "none.yml")
    other = tmp_path / "other.yml"
    other.write_text("all: {hosts: {somebody: {}}}\n")
    with pytest.raises(BadInput, match="no hosts in the groups fedsim_server"):
        read_inventory(other)
    other.write_text("fedsim_nodes: {hosts: {a: {ansible_port: 70000}}}\n")
    with pytest.raises(BadInput, match="the host a has variables that cannot be used: ansible_port"):
        read_inventory(other)
    other.write_text("fedsim_nodes: [")
    with pytest.raises(BadInput, match="Ansible cannot read"):
        read_inventory(other)


def test_a_host_that_is_not_in_the_inventory_is_named() -> None:
    assert chosen([SERVER, NODE], ("node-a",)) == [NODE]
    with pytest.raises(BadInput, match="not in the inventory: node-x; there are node-a, server"):
        chosen([SERVER, NODE], ("node-a", "node-x"))


def test_server_and_nodes_must_reach_each_other() -> None:
    other = host("node-bb")
    assert ways_from(SERVER, [SERVER, NODE, other]) == [("198.18.0.6", 9002), ("198.18.0.7", 9002)]
    assert ways_from(NODE, [SERVER, NODE, other]) == [("198.18.0.6", 9001)]


# ---------------------------------------------------------------- what is wrong


def test_with_a_lab_that_is_well_nothing_is_found() -> None:
    assert findings((SERVER, report(SERVER)), (NODE, report(NODE))) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"disk": {"free": 10**9, "all": 10**12}}, "only 1.0 GB of 1.0 TB are free below /var/lib/fedsim"),
        ({"memory": {"free": 10**8, "all": 10**10}}, "only 100.0 MB of 10.0 GB of memory are available"),
        ({"version": ""}, "fedsim is not installed"),
        ({"revoked": "older"}, "its list of revoked certificates is not the lab's newest"),
        ({"metrics": {"client": {}}}, "the client does not tell its numbers"),
        ({"metrics": {"client": {"fedsim_dataset_problems": 2}}}, "2 of its data sets cannot be used"),
        ({"certificates": []}, "it has no certificate"),
        ({"deep": deep(failed=["fedsim-client@lab-a"])}, "fedsim-client@lab-a has failed"),
        ({"deep": deep(unwritable=["/var/lib/fedsim/client"])}, "cannot write /var/lib/fedsim/client"),
        ({"deep": deep(killed=["Out of memory: Killed process 7"])}, "for want of memory: Out of memory: Killed"),
        ({"deep": deep(watches={"instances": 8, "watches": 9})}, "only 8 inotify instances"),
        ({"deep": deep(datasets=[{"path": "/d", "problem": "is not there"}])}, "the data set /d (/d) is not there"),
        (
            {"deep": deep(configurations=[{"path": "/etc/fedsim/client.yml", "valid": False, "says": "nam: unknown"}])},
            "/etc/fedsim/client.yml is not valid: nam: unknown",
        ),
        (
            {"deep": deep(ways=[{"address": "198.18.0.6", "port": 9001, "problem": "Connection refused"}])},
            "it cannot reach 198.18.0.6 at 198.18.0.6:9001: Connection refused",
        ),
    ],
)
def test_each_trouble_of_a_host_is_found(changes: dict[str, object], problem: str) -> None:
    assert problem in problems_of_node(**changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"loaded": False}, "fedsim-client is not installed"),
        ({"state": "failed", "sub": "failed", "lines": ["no room"]}, "is failed (failed); it said last: no room"),
        ({"enabled": "disabled"}, "fedsim-client does not start with the host (disabled)"),
    ],
)
def test_each_trouble_of_a_unit_is_found(changes: dict[str, object], problem: str) -> None:
    units = [one.model_dump() for one in report(NODE).units]
    assert problem in problems_of_node(units=[units[0], {**units[1], **changes}])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (certificate("node-b", Role.CLIENT), "host.crt is that of client node-b, not of client node-a"),
        (certificate("node-a", Role.SERVER), "host.crt is that of server node-a, not of client node-a"),
        (pem(AUTHORITY).decode(), "host.crt is none of fedsim-ca's"),
        (pem(REVOKED).decode(), "host.crt is revoked"),
        (certificate("node-a", Role.CLIENT, after=timedelta(hours=1)), "host.crt is not valid yet"),
        (certificate("node-a", Role.CLIENT, days=5), "host.crt ends in 5 days"),
        (certificate("node-a", Role.CLIENT, days=0), "host.crt has expired"),
        ("-----BEGIN NOTHING-----", "is no certificate"),
        (
            FOREIGN,
            "is not signed by the lab's authority",
        ),
    ],
)  # fmt: skip
def test_each_trouble_of_a_certificate_is_found(text: str, problem: str) -> None:
    file = {"path": "/etc/fedsim/pki/host.crt", "pem": text, "problem": "", "key": True}
    assert problem in problems_of_node(certificates=[file])


def test_a_clock_is_wrong_only_beyond_doubt() -> None:
    slow = report(NODE).model_copy(update={"skew": -40.0})
    assert [found.problem for found in findings((NODE, slow))] == ["its clock differs by -40 s from this machine's"]
    assert findings((NODE, report(NODE).model_copy(update={"skew": 2.0}))) == []


def test_a_server_names_missing_nodes_and_what_it_waits_for() -> None:
    numbers = {"server": {'fedsim_node_online{node="node-a"}': 0.0, 'fedsim_waiting{for="database"}': 1.0}}
    told = [found.problem for found in findings((SERVER, report(SERVER, metrics=numbers)), (NODE, report(NODE)))]
    assert told == ["the server has not heard of node-a lately", "the server waits for database"]


def test_a_node_that_its_institution_deploys_is_missed_as_well() -> None:
    online = {'fedsim_node_online{node="node-a"}': 1.0, 'fedsim_node_online{node="hospital"}': 0.0}
    (found,) = findings((SERVER, report(SERVER, metrics={"server": online})), (NODE, report(NODE)))
    assert found.problem == "the server has not heard of hospital lately"
    assert found.remedy == "ask the institution of hospital, which deploys it itself"


def test_a_dead_host_and_different_versions_are_found() -> None:
    lab = Lab([SERVER, NODE], None, NOW.timestamp())
    dead = diagnose({"server": report(SERVER), "node-a": Unavailable("the cable is out")}, lab)
    assert dead == [Finding("node-a", "it does not answer", "the cable is out")]
    (found,) = diagnose({"server": report(SERVER, version="0.2.0"), "node-a": report(NODE)}, lab)
    assert found.problem == "hosts have different versions: 0.1.0 on node-a; 0.2.0 on server"


def test_a_line_of_the_table_tells_what_is_not_well() -> None:
    units = [{**one.model_dump(), "state": "failed"} for one in report(NODE).units]
    bad = report(NODE, units=units)
    line = row("node-a", bad, (NOW + timedelta(days=5)).timestamp())
    assert line[:3] == ["node-a", "receiver failed, client failed", "0.1.0"]
    assert line[-1] == "360 days"
    assert not well(bad)
    assert well(report(NODE))
    assert row("node-a", Unavailable("nobody there\nmore"), 0)[1:4] == ["does not answer", "–", "nobody there"]


# ---------------------------------------------------------------- journals


def entry(at: int, host: str = "a") -> Entry:
    return Entry(at, host, "fedsim-server", f"at {at}", 6)


def test_journals_are_merged_by_time() -> None:
    streams = [iter([entry(1), entry(4)]), iter([entry(2, "b"), entry(3, "b"), entry(9, "b")])]
    assert [one.at for one in journals.merged(streams)] == [1, 2, 3, 4, 9]


def test_while_following_an_entry_waits_for_an_earlier_one_of_another_host() -> None:
    came: queue.Queue[Entry] = queue.Queue()
    for one in (entry(5), entry(3, "b"), entry(9, "b")):
        came.put(one)
    assert [one.at for one in islice(journals.in_order(came), 3)] == [3, 5, 9]


def test_while_following_what_came_is_told_though_nothing_follows() -> None:
    came: queue.Queue[Entry] = queue.Queue()
    came.put(entry(5))
    assert next(journals.in_order(came)).at == 5


def test_a_journal_that_broke_off_goes_on_after_its_last_entry() -> None:
    question = journals.Question(task=7, since="yesterday")
    assert question.following("")[-5:] == [
        "--no-pager", "FEDSIM_TASK=7", "--since=yesterday", "--follow", "--no-tail"
    ]  # fmt: skip
    # journalctl refuses a time beside a place.
    assert question.following("s=1;i=2")[-4:] == ["FEDSIM_TASK=7", "--after-cursor=s=1;i=2", "--follow", "--no-tail"]


def test_a_line_of_a_journal_is_parsed_and_a_strangers_is_not() -> None:
    line = {"__REALTIME_TIMESTAMP": "1700000000000001", "MESSAGE": "ready", "_SYSTEMD_UNIT": "fedsim-server.service"}
    assert journals.parse("a", json.dumps(line)) == Entry(1700000000000001, "a", "fedsim-server", "ready", 6)
    binary = journals.parse("a", json.dumps({**line, "MESSAGE": [27, 91, 49], "PRIORITY": "3"}))
    assert binary is not None
    shown = journals.shown(binary, {"a": "cyan"}, 1).plain
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
    with pytest.raises(BadInput, match="node-a has no data set mnist in the inventory that lies in files"):
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
    with pytest.raises(BadInput, match="is no plain file"):
        push.files_of(folder)
    with pytest.raises(NotThere, match="there is no file or folder"):
        push.files_of(tmp_path / "none")
