"""The owner's page: one session for the one who started it, and nothing for other users, sites and pages."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from owner_support import ASKING, OwnedNode, asked_task, owned_node

from fedsim.client.audit_log import AuditLog, OwnerDecision
from fedsim.settings import parse_settings


@pytest.fixture
def node(tmp_path: Path) -> Iterator[OwnedNode]:
    with owned_node(tmp_path) as found:
        yield found


def hidden(text: str, name: str) -> str:
    match = re.search(rf'name="{name}" value="([^"]*)"', text)
    assert match is not None
    return match[1]


def test_the_address_opens_one_session_once(node: OwnedNode) -> None:
    with node.browser() as owner, node.browser() as other:
        assert owner.get("/").status_code == 403
        assert other.get("/open?token=guess").status_code == 403
        shown = owner.get(node.page.way_in)
        assert shown.status_code == 200
        assert (owner.cookies.jar is not None, "study" in shown.text) == (True, True)
        cookie = shown.history[0].headers["set-cookie"]
        assert "HttpOnly; SameSite=Strict" in cookie
        assert other.get(node.page.way_in).status_code == 403
        assert other.get("/audit").status_code == 403
        assert other.post("/decide", data={"answer": "approve"}).status_code == 403
        policy = owner.get("/").headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'")
        assert "script-src" not in policy


def test_it_shows_everything_that_is_asked_and_what_would_leave(node: OwnedNode) -> None:
    with node.browser() as owner:
        text = owner.get(node.page.way_in).text
        assert "&lt;b&gt;study&lt;/b&gt;" in text
        assert "ada" in text
        assert "199210" in text  # parameters of the 2NN
        assert "796.8 kB" in text
        assert node.approvals.waiting[0].digest in text
        assert "<script" not in text
        for path, kind in (("app.css", "text/css"), ("icon.svg", "image/svg+xml")):
            assert owner.get(f"/static/{path}").headers["content-type"].startswith(kind)
        assert owner.get("/static/../page.py").status_code == 404
        assert "待批准的任务" in owner.get("/", headers={"Accept-Language": "zh-CN"}).text
        owner.post("/language", data={"csrf": hidden(text, "csrf"), "language": "zh_CN", "next": "//evil.example"})
        assert "待批准的任务" in owner.get("/").text


def test_of_statistics_it_says_what_would_leave_instead_of_parameters(node: OwnedNode) -> None:
    settings, _ = parse_settings({"kind": "statistics", "dataset": "mnist", "purpose": "look"})
    node.approvals.must_wait(asked_task(settings=settings, task="6" * 32, number=8), ASKING)
    node.socket.pending = node.approvals.waiting
    with node.browser() as owner:
        text = owner.get(node.page.way_in).text.split('id="task-8"')[1]
    assert "Statistics of mnist" in text
    assert "Counts, sums and histograms of the columns" in text
    assert "199210" not in text
    assert "Passes over the data" not in text


@pytest.mark.parametrize("answer", ["approve", "refuse"])
def test_a_decision_needs_the_form_of_this_session(node: OwnedNode, answer: str) -> None:
    with node.browser() as owner:
        text = owner.get(node.page.way_in).text
        form = {name: hidden(text, name) for name in ("csrf", "uid", "digest")} | {
            "answer": answer,
            "reason": "no vote",
        }
        assert owner.post("/decide", data={**form, "csrf": "x"}).status_code == 403
        assert owner.post("/decide", data=form, headers={"Origin": "http://evil.example"}).status_code == 403
        assert owner.post("/decide", data=form, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert owner.post("/decide", data=form, headers={"Host": "evil.example"}).status_code == 403
        assert owner.post("/decide", data={**form, "digest": "x"}).status_code == 400
        assert owner.post("/decide", data={**form, "answer": "x"}).status_code == 400
        assert owner.get("/decide").status_code == 404
        assert node.socket.orders() == []

        daemon = threading.Thread(target=node.decide)
        daemon.start()
        done = owner.post("/decide", data=form)
        daemon.join()
        assert f"The task was {'approved' if answer == 'approve' else 'refused'}." in done.text
        assert "No task waits for your approval." in done.text
        (decision,) = AuditLog(node.log.path).open().decisions.values()
        assert (decision.approved, decision.reason) == (answer == "approve", "" if answer == "approve" else "no vote")

        audit = owner.get("/audit").text
        assert "The chain of the log is intact (lines: 1)." in audit
        assert {"approve": "approval", "refuse": "refusal"}[answer] in audit


def test_the_log_has_pages_and_says_where_it_was_changed(node: OwnedNode) -> None:
    for number in range(120):
        node.log.decide(asked_task(), "server", OwnerDecision(approved=True, by=f"owner-{number}"))
    with node.browser() as owner:
        owner.get(node.page.way_in)
        first = owner.get("/audit").text
        assert "owner-119" in first
        assert "owner-69" not in first
        assert 'href="/audit?before=71"' in first
        assert "owner-69" in owner.get("/audit?before=71").text
        assert owner.get("/audit?before=x").status_code == 422
        node.log.path.write_text(node.log.path.read_text().replace("owner-3 ", "").replace('"owner-3"', '"owner-4"'))
        assert "line 4, or one before it, is not what was written" in owner.get("/audit").text
        node.socket.close()
        node.socket_closed = True
        gone = owner.get("/")
        assert gone.status_code == 503
        assert "does fedsim-client run?" in gone.text
