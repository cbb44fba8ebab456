"""An owner approves exactly what they were shown; the decision is durable, and says who made it."""

from __future__ import annotations

import json
import os
import pwd
import select
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from plugin_support import INFO, hello, planned
from test_institution_rules import config
from test_task_machine_more import assignment

from fedsim.client.announcing import make_hello
from fedsim.client.approvals import PendingApprovals
from fedsim.client.audit_log import AuditLog, OwnerDecision
from fedsim.client.owner_socket import AuditQuery, DecisionRequest, OwnerSocket, PendingQuery, ask
from fedsim.config import ClientConfig
from fedsim.config.institution import Institution
from fedsim.errors import BadInput, Unavailable
from fedsim.messages import Assignment
from fedsim.settings import TaskSettings
from fedsim.state_machines.policy import can_do_without
from fedsim.text import one_line
from fedsim.worker.inspector import Inspected

RULES = ClientConfig.model_validate(
    config().model_dump(exclude_unset=True) | {"institution": {"require_approval": True}, "owner_socket": "/run/x.sock"}
)


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.jsonl").open()


def asked(**changes: Any) -> Assignment:
    return assignment(user="ada", **changes)


@pytest.mark.parametrize("of_data_set", [False, True])
def test_the_rule_needs_a_socket_for_the_owner(of_data_set: bool) -> None:
    whole = config().model_dump(exclude_unset=True)
    if of_data_set:
        whole["datasets"].append({"name": "secret", "path": "secret", "require_approval": True})
    else:
        whole["institution"] = Institution(require_approval=True)
    with pytest.raises(ValueError, match=r"(?s)owner_socket.*is needed for require_approval"):
        ClientConfig.model_validate(whole)
    made = ClientConfig.model_validate(whole | {"owner_socket": "/run/x.sock"})
    assert made.requires_approval("secret")
    assert made.requires_approval(made.datasets[0].name) is not of_data_set
    seen = Inspected((INFO.model_copy(update={"name": "secret"}),))
    (announced,) = make_hello(made, seen, [], []).datasets
    assert announced.require_approval


def test_the_server_asks_the_owners_of_the_data_set_that_the_task_uses() -> None:
    secret = INFO.model_copy(update={"name": "secret", "require_approval": True})
    nodes = [hello("a", datasets=(INFO, secret)), hello("b", datasets=(INFO,)), hello("c", datasets=(secret,))]
    for dataset, asked_nodes in (("mnist", []), ("secret", ["a", "c"])):
        plan = planned(*nodes, settings=TaskSettings(dataset=dataset, partition="iid", num_clients=10))
        assert [share.node for share in plan.shares if share.approval] == asked_nodes


def test_a_task_waits_until_exactly_it_is_approved(log: AuditLog) -> None:
    approvals = PendingApprovals(log)
    task = asked(begin=False)
    assert approvals.must_wait(task, RULES)
    assert [report.state for report in approvals.reports] == ["waiting"]

    decision = OwnerDecision(approved=True, by="owner")
    log.decide(task, "server", decision)
    approvals.decided(task, decision)
    assert approvals.must_wait(task, RULES), "the server has not begun it"
    assert [report.state for report in approvals.reports] == ["approved"]
    assert approvals.waiting == []
    assert not approvals.must_wait(asked(), RULES)

    again = PendingApprovals(AuditLog(log.path).open())
    assert not again.must_wait(asked(), RULES), "the decision is in the log"
    longer = task.settings.model_copy(update={"num_rounds": 999})
    for other in (
        asked(num_clients=1),
        asked(settings=longer),
        asked(send_testset=not task.send_testset),
        assignment(user="eve"),
    ):
        assert again.must_wait(other, RULES), "only what was shown is approved"


def test_a_task_that_was_accepted_before_the_rule_goes_on(log: AuditLog) -> None:
    log.add(log.accept(asked(), "server"))
    approvals = PendingApprovals(AuditLog(log.path).open())
    assert not approvals.must_wait(asked(), RULES)
    assert approvals.must_wait(asked(num_clients=1), RULES)


def test_without_the_rule_a_task_waits_only_for_the_server(log: AuditLog) -> None:
    approvals = PendingApprovals(log)
    assert approvals.must_wait(asked(begin=False), config())
    assert [report.state for report in approvals.reports] == ["approved"]
    assert not approvals.must_wait(asked(), config())


def test_a_refusal_is_given_to_the_server_with_its_reason_also_after_a_restart(log: AuditLog) -> None:
    log.decide(asked(), "server", OwnerDecision(approved=False, by="owner", reason="no ethics vote"))
    approvals = PendingApprovals(AuditLog(log.path).open())
    assert approvals.refusal(asked()) == "its owner does not approve it: no ethics vote"
    line = json.loads(log.path.read_text())
    assert (line["kind"], line["by"], line["reason"], line["user"]) == ("refusal", "owner", "no ethics vote", "ada")


def test_what_has_changed_since_it_was_shown_is_not_decided(log: AuditLog) -> None:
    approvals = PendingApprovals(log)
    approvals.must_wait(asked(), RULES)
    shown = approvals.waiting[0].digest
    assert approvals.find(asked().task, shown) == (asked(), "")
    approvals.must_wait(asked(num_clients=1), RULES)
    assert "has changed this task" in approvals.find(asked().task, shown)[1]
    approvals.drop(asked().task)
    assert "does not wait" in approvals.find(asked().task, shown)[1]


def test_text_is_one_line_without_control_and_bidirectional_characters() -> None:
    assert one_line("a\x1b[31m\nb\u202ec\u2028d  e\0", 100) == "a [31m b c d e"
    assert one_line("不同意", 2) == "不同"


@pytest.mark.parametrize(
    ("settings", "left_out", "possible"),
    [
        ({}, {"a"}, True),
        ({}, {"a", "b", "c"}, False),
        ({"num_nodes": 2}, {"a"}, True),
        ({"num_nodes": 2}, {"a", "b"}, False),
        ({"nodes": ("a", "b")}, {"a"}, False),
    ],
)
def test_a_task_does_without_a_node_where_its_settings_allow(
    settings: dict[str, Any], left_out: set[str], *, possible: bool
) -> None:
    chosen = assignment().settings.model_copy(update={"num_nodes": 0, "nodes": (), **settings})
    assert can_do_without(chosen, ["a", "b", "c"], left_out) is possible


# ---------------------------------------------------------------- the socket


@pytest.fixture
def owner(tmp_path: Path, log: AuditLog) -> Iterator[tuple[OwnerSocket, Path]]:
    folder = tmp_path / ("long" * 30)  # longer than the address of a socket
    folder.mkdir()
    path = folder / "owner.sock"
    served = OwnerSocket(path, "node-a", log.path)
    served.open()
    yield served, path
    served.close()
    assert not path.exists()


def test_the_socket_is_for_a_group_and_shows_what_waits(log: AuditLog, owner: tuple[OwnerSocket, Path]) -> None:
    served, path = owner
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    approvals = PendingApprovals(log)
    approvals.must_wait(asked(), RULES)
    served.pending = approvals.waiting
    (item,) = ask(path, PendingQuery())["pending"]
    assert Assignment.model_validate(item["assignment"]) == asked()
    with pytest.raises(Unavailable, match="another process listens on it"):
        OwnerSocket(path, "node-a", log.path).open()
    assert ask(path, PendingQuery())["pending"] == [item]


def test_a_decision_reaches_the_daemon_with_the_name_of_the_unix_user(owner: tuple[OwnerSocket, Path]) -> None:
    served, path = owner
    found = []

    def daemon() -> None:
        select.select([served], [], [], 10)
        for order in served.orders():
            found.append(order)
            order.answer.set_result("")

    thread = Thread(target=daemon)
    thread.start()
    request = DecisionRequest(uid="a" * 32, digest="b" * 64, approve=False, reason="no\x1b[2J\n" + "x" * 5000)
    assert ask(path, request) == {"error": ""}
    thread.join()
    decision = found[0].decision
    assert (decision.approved, decision.by) == (False, pwd.getpwuid(os.getuid()).pw_name)
    assert decision.reason.startswith("no [2J xxx")
    assert len(decision.reason) == 500


def test_the_log_is_shown_newest_first_and_checked(log: AuditLog, owner: tuple[OwnerSocket, Path]) -> None:
    _, path = owner
    for number in range(5):
        log.decide(asked(), "server", OwnerDecision(approved=True, by=f"owner {number}"))
    found = ask(path, AuditQuery(limit=2))
    assert [(line["line"], line["by"]) for line in found["lines"]] == [(5, "owner 4"), (4, "owner 3")]
    assert (found["total"], found["problems"]) == (5, [])
    assert [line["line"] for line in ask(path, AuditQuery(before=2))["lines"]] == [1]
    log.path.write_text(log.path.read_text().replace("owner 1", "owner 9"))
    assert ask(path, AuditQuery())["problems"] == ["line 2, or one before it, is not what was written"]


@pytest.mark.parametrize("content", [b"", b"\0" * 100_000, b"[" * 50_000, b'{"do": "decide"}', b'{"do": 7}\n'])
def test_nonsense_is_answered_and_the_next_request_as_well(owner: tuple[OwnerSocket, Path], content: bytes) -> None:
    served, path = owner
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        folder = os.open(path.parent, os.O_PATH)
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(100_000)
        except OSError:  # it read enough
            answer = b""
    assert b"not understood" in answer or not answer
    assert ask(path, PendingQuery()) == {"node": "node-a", "pending": []}
    assert served.orders() == []


def test_a_socket_that_no_one_serves_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="does fedsim-client run"):
        ask(tmp_path / "none.sock", PendingQuery())
    with pytest.raises(BadInput, match="not understood"):
        serve_once(tmp_path / "s", PendingQuery.model_construct(do="nothing"))


def serve_once(path: Path, request: Any) -> None:
    served = OwnerSocket(path, "n", path.with_suffix(".jsonl"))
    served.open()
    try:
        ask(path, request)
    finally:
        served.close()
