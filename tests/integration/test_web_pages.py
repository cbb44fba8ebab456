"""The pages of tasks and nodes: whose they are, what they show, and that nothing typed becomes markup."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from web_support import PASSWORD, Site, make_site

from fedsim.errors import Unavailable
from fedsim.store.records import Event, Node, Resumable, TaskState
from fedsim.web import accounts

SCRIPT = "<script>alert('x')</script>\"'&"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path)
    yield made
    made.store.close()


def form_of(page: str) -> dict[str, str]:
    """A form's typed fields as a browser would send them."""
    inputs = re.findall(r'<input id="(\w+)" name="\w+" value="([^"]*)"', page)
    menus = re.findall(r'<select id="(\w+)".*?<option value="([^"]*)" selected', page, re.DOTALL)
    return {name: html.unescape(value) for name, value in inputs + menus}


def test_submitting_the_form_unchanged_creates_the_default_task_and_notifies_the_server(site: Site) -> None:
    site.node()
    browser = site.user("lin")
    answer = browser.post_form("/tasks/new", **form_of(browser.get("/tasks/new").text))
    assert (answer.status_code, answer.headers["Location"]) == (303, "/tasks/1")
    task = site.store.tasks.get(1)
    assert task is not None
    assert task.state is TaskState.PENDING
    assert (task.settings.num_clients, task.settings.partition, task.settings.model) == (100, "shards", "2nn")
    assert site.notifier.notifications == [("submitted", 1)]
    assert [event.kind for event in site.store.events.newest(task=1)] == ["submitted"]


def test_a_form_with_problems_comes_back_as_it_was_typed(site: Site) -> None:
    site.node(num_train=50)
    browser = site.user("lin")
    typed = form_of(browser.get("/tasks/new").text) | {"title": SCRIPT, "num_rounds": " 0 ", "partition": "pie"}
    answer = browser.post_form("/tasks/new", **typed)
    assert answer.status_code == 422
    again = form_of(answer.text)
    assert {name: value.strip() for name, value in again.items()} == {name: v.strip() for name, v in typed.items()}
    assert "must be at least 1" in answer.text
    assert site.store.tasks.newest() == []
    assert site.notifier.notifications == []


def test_more_clients_than_examples_are_refused_with_the_number(site: Site) -> None:
    site.node(num_train=50)
    browser = site.user("lin")
    answer = browser.post_form("/tasks/new", num_clients="51")
    assert answer.status_code == 422
    assert "must be at most 25: more clients cannot share the 50 training examples of mnist" in answer.text


def test_running_again_starts_from_the_tasks_settings(site: Site) -> None:
    browser = site.user("lin")
    site.task("lin", title="first", num_rounds=7, local_learning_rate=0.03)
    form = form_of(browser.get("/tasks/new?from=1").text)
    assert (form["title"], form["num_rounds"], form["local_learning_rate"]) == ("first", "7", "0.03")
    assert site.user("wang").get("/tasks/new?from=1").status_code == 404


PAGES = ["", "/rounds.csv", "/rounds.json", "/checkpoints/10", "/checkpoints/10?part=json"]


def test_a_task_of_another_user_is_as_if_it_were_not_there(site: Site) -> None:
    owner, other, admin = site.user("lin"), site.user("wang"), site.admin()
    task = site.task("lin", title="secret plans")
    site.run_rounds(task, 10)
    site.finish(task)
    for page in PAGES:
        assert owner.get(f"/tasks/1{page}").status_code == 200, page
        assert admin.get(f"/tasks/1{page}").status_code == 200, page
        theirs, nobodys = other.get(f"/tasks/1{page}"), other.get(f"/tasks/999{page}")
        assert (theirs.status_code, nobodys.status_code) == (404, 404)
        assert theirs.text.replace("/tasks/1", "/tasks/999") == nobodys.text
    for verb in ("stop", "delete"):
        assert other.post_form("/tasks", f"/tasks/1/{verb}").status_code == 404
    assert "secret plans" not in other.get("/tasks").text
    assert "secret plans" not in admin.get("/tasks").text
    assert "secret plans" in admin.get("/admin/tasks").text
    assert other.get("/admin/tasks").status_code == 403


def test_what_people_and_nodes_wrote_never_becomes_markup(site: Site) -> None:
    site.node()
    browser = site.user("lin")
    task = site.task("lin", title=SCRIPT)
    site.run_rounds(task, 2)
    site.store.events.add(Event(site.now, "warning", SCRIPT, task=task.number))
    site.store.tasks.move(task.uid, TaskState.FAILED, reason=SCRIPT, now=site.now)
    hello = site.store.nodes.all()[0].hello
    site.store.nodes.record(Node("node-1", site.now, hello | {"problems": [SCRIPT]}))
    site.store.nodes.record(Node("node-2", site.now, {"node": SCRIPT}))
    browser.post_form("/profile", "/profile/tokens", label=SCRIPT)
    for page in ("/tasks", "/tasks/1", "/tasks/new?from=1", "/nodes", "/profile"):
        text = browser.get(page).text
        assert "<script>alert" not in text, page
        assert "&lt;script&gt;alert" in text or page == "/nodes", page
    hostile = browser.get(f"/nope/{SCRIPT}?{SCRIPT}")
    assert hostile.status_code == 404
    assert "<script>alert" not in hostile.text


def test_the_page_shows_whom_a_task_waits_for_and_what_was_measured(site: Site) -> None:
    browser = site.user("lin")
    site.run_rounds(site.task("lin"), 3, missing=(17, 42))
    text = re.sub(r"<[^>]+>", "", browser.get("/tasks/1").text)
    text = re.sub(r"\s+", " ", text)
    for part in (
        "Waiting for node-2 until 2027-01-15",
        "Round 4 of 10",
        "about 49 s left",
        "70.00 %",
        "2 of 10: 17, 42",
    ):
        assert part in text
    assert browser.get("/tasks/1").text.count("<polyline") == 3


SCREENED = [
    {"node": "node-1", "chunk": 0, "client": client, "outside": "", "excluded": False, "figures": figures}
    for client, figures in enumerate(
        ({"norm": 0.5, "norm_ratio": 1.0, "cosine": 0.7}, {"norm": 0.25, "norm_ratio": 0.5})
    )
]
LEFT_OUT = {
    "node": "node-2",
    "chunk": 1,
    "client": None,
    "excluded": True,
    "outside": "its norm is 97 times the median",
}


def test_the_page_shows_what_a_screening_found_of_each_node(site: Site) -> None:
    browser = site.user("lin")
    task = site.task("lin", screening="exclude")
    site.run_rounds(task, 3)
    assert 'id="screening"' not in browser.get("/tasks/1").text
    excluded = {**LEFT_OUT, "figures": {"norm": 48.5, "norm_ratio": 97.0, "cosine": None}}
    site.run_rounds(task, 3, first=1, missing=(3,), screening=(*SCREENED, excluded))
    table = browser.get("/tasks/1").text.partition('id="screening"')[2].partition("</section>")[0]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", table))
    assert "round 3" in text
    assert "node-1 2 0.25 – 0.5 0.5 – 1 0.7 0 0 –" in text
    assert "node-2 1 48.5 97 – 3 3 its norm is 97 times the median" in text
    record = browser.get("/api/v1/tasks/1/rounds").json()["rounds"][-1]
    assert record["screening"][2] == excluded
    site.run_rounds(task, 4, first=4)
    assert "round 3" in browser.get("/tasks/1").text, "the newest round that was screened"


NODE_METRICS: dict[str, Any] = {
    "nodes": {
        "node-1": {"num_examples": 80, "withheld": "", "metrics": {"accuracy": [0.9, 0.85, 0.95]}},
        "node-2": {"num_examples": 0, "withheld": "no held-out examples", "metrics": {}},
    },
    "missing": ["node-3"],
    "mean": {"accuracy": [0.9, 0.85, 0.95]},
    "worst": {"accuracy": ["node-1", 0.9]},
}


def test_the_page_shows_the_tests_on_the_nodes_own_data(site: Site) -> None:
    browser = site.user("lin")
    task = site.task("lin", evaluation="nodes")
    site.run_rounds(task, 2)
    assert 'id="node-tests"' not in browser.get("/tasks/1").text
    site.run_rounds(task, 3, first=3, node_metrics=NODE_METRICS, missing=(3,), missing_share=0.25)
    page = browser.get("/tasks/1").text
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition('id="node-tests"')[2].partition("</section>")[0]))
    assert "node-1 80 90.00 % (85.00 % – 95.00 %)" in text
    assert "node-2 – no held-out examples" in text
    assert "node-3 – did not report in time" in text
    assert "Worst node – node-1" in text
    assert "25.00 %" in page, "the share of missing examples"
    assert browser.get("/api/v1/tasks/1/rounds").json()["rounds"][-1]["node_metrics"] == NODE_METRICS
    rows = list(csv.DictReader(io.StringIO(browser.get("/tasks/1/rounds.csv").text)))
    assert (rows[3]["node_node-1_accuracy"], rows[3]["missing_share"]) == ("0.9", "0.25")


ONE: dict[str, Any] = {"num_clients": 5, "num_examples": 300, "loss": 0.5, "client_norm": 3.0, "norm": 2.0}
CONTRIBUTIONS: dict[str, Any] = {
    "norm": 4.0,
    "nodes": {"node-1": {**ONE, "node": "node-1", "distance": 1.0, "cosine": 0.75}},
    "clients": {
        str(client): {**ONE, "node": "node-1", "num_clients": 1, "client_norm": None, "distance": None, "cosine": None}
        for client in range(30)
    },
}


def test_the_page_shows_what_nodes_and_clients_contributed(site: Site) -> None:
    browser = site.user("lin")
    task = site.task("lin")
    site.run_rounds(task, 2)
    assert 'id="contributions"' not in browser.get("/tasks/1").text
    site.run_rounds(task, 3, first=3, contributions=CONTRIBUTIONS)
    table = browser.get("/tasks/1").text.partition('id="contributions"')[2].partition("</section>")[0]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", table))
    assert "node-1 5 300 0.5 2 3 0.25 0.75" in text
    assert "client 3 of node-1 1 300 0.5 2 – – –" in text
    assert table.count("client ") == 20
    assert browser.get("/api/v1/tasks/1/rounds").json()["rounds"][-1]["contributions"] == CONTRIBUTIONS
    rows = list(csv.DictReader(io.StringIO(browser.get("/tasks/1/rounds.csv").text)))
    assert (rows[3]["node_node-1_train_loss"], rows[3]["node_node-1_update_cosine"]) == ("0.5", "0.75")


def test_a_warning_is_on_the_page_and_in_the_list(site: Site) -> None:
    browser = site.user("lin")
    task = site.task("lin")
    site.run_rounds(task, task.settings.num_rounds)
    site.store.tasks.set_best(task.uid, {"round": 2, "metric": "accuracy", "value": 0.875})
    assert site.store.tasks.move(task.uid, TaskState.COMPLETED, now=site.now, warning="a third was missing")
    page = browser.get("/tasks/1").text
    assert 'role="alert"' in page
    assert "a third was missing" in page
    assert "Best round so far by Accuracy: round 2 with 87.50 %" in page
    assert "a third was missing" in browser.get("/tasks").text
    record = browser.get("/api/v1/tasks/1").json()["task"]
    assert (record["warning"], record["best"]["round"]) == ("a third was missing", 2)


def test_the_live_part_comes_alone_and_only_when_it_changed(site: Site) -> None:
    browser = site.user("lin")
    task = site.task("lin")
    for address in ("/tasks", "/tasks/1"):
        seen = re.findall(r'hx-get="([^"]+)"', browser.get(address).text)[0].replace("&amp;", "&")
        assert browser.get(seen, headers={"HX-Request": "true"}).status_code == 204
    site.run_rounds(task, 1)
    for address in ("/tasks", "/tasks/1"):
        part = browser.get(f"{address}?seen=old", headers={"HX-Request": "true"})
        assert part.status_code == 200
        assert "<html" not in part.text
        assert 'hx-trigger="every' in part.text


def test_a_finished_tasks_page_is_not_refreshed(site: Site) -> None:
    browser = site.user("lin")
    task = site.task("lin")
    site.run_rounds(task, 10)
    site.finish(task)
    page = browser.get("/tasks/1").text
    assert "hx-get" not in page
    assert 'http-equiv="refresh"' not in page


def test_the_live_part_sends_to_the_log_in_when_the_session_has_ended(site: Site) -> None:
    browser = site.user("lin")
    site.task("lin")
    site.now += 13 * 3600
    answer = browser.get("/tasks/1", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (401, "/login")


def test_without_javascript_pages_that_live_reload_themselves(site: Site) -> None:
    browser = site.user("lin")
    site.task("lin")
    for page in ("/tasks", "/tasks/1", "/nodes"):
        assert re.search(r"<noscript><meta http-equiv=\"refresh\" content=\"\d+\">", browser.get(page).text), page


def test_stopping_and_deleting(site: Site) -> None:
    browser = site.user("lin")
    first, second = site.task("lin"), site.task("lin", title="two")
    site.run_rounds(first, 1)
    for _ in range(2):  # twice is the same as once
        assert browser.post_form("/tasks/1", "/tasks/1/stop").status_code == 303
    running = site.store.tasks.get(1)
    assert running is not None
    assert (running.state, running.stop_requested) == (TaskState.RUNNING, True)
    assert site.notifier.reasons == ["stopped by lin", "stopped by lin"]
    assert [event.kind for event in site.store.events.newest(task=1)] == ["stop_requested"]
    too_early = browser.post_form("/tasks/1", "/tasks/1/delete")
    assert too_early.status_code == 409
    assert "stop it first" in too_early.text
    browser.post_form("/tasks/2", f"/tasks/{second.number}/stop")
    waiting = site.store.tasks.get(2)
    assert waiting is not None
    assert waiting.state is TaskState.STOPPED
    assert browser.post_form("/tasks/2", "/tasks/2/stop").status_code == 409
    assert browser.post_form("/tasks/2", "/tasks/2/delete").headers["Location"] == "/tasks"
    assert [task.number for task in site.store.tasks.to_delete()] == [2]
    assert "is being deleted" in browser.get("/tasks").text


def test_a_failed_task_is_resumed_by_a_button_or_says_why_not(site: Site) -> None:
    browser = site.user("lin")
    task = site.task("lin")
    site.run_rounds(task, 3)
    too_early = browser.post_form("/tasks/1", "/tasks/1/resume")
    assert (too_early.status_code, "nothing to resume" in too_early.text) == (409, True)
    kept = Resumable(uid="b" * 32, round=3)
    site.store.tasks.move(task.uid, TaskState.FAILED, now=site.now, reason="a node broke", resumable=kept)
    assert 'id="resume"' in browser.get("/tasks/1").text
    assert "Resume after round 3" in browser.get("/tasks/1").text
    assert browser.post_form("/tasks/1", "/tasks/1/resume").headers["Location"] == "/tasks/1"
    resumed = site.store.tasks.get(1)
    assert resumed is not None
    assert (resumed.state, resumed.uid, resumed.reason) == (TaskState.PENDING, "b" * 32, "")
    assert site.notifier.notifications == [("submitted", 1)]
    assert [event.kind for event in site.store.events.newest(task=1)] == ["resume_requested"]
    site.store.tasks.claim_next(site.now)
    gone = Resumable(problem="its state was kept for 30 days")
    site.store.tasks.move(resumed.uid, TaskState.FAILED, now=site.now, resumable=gone)
    other = site.task("lin", title="two")
    site.store.tasks.claim_next(site.now)
    site.store.tasks.move(other.uid, TaskState.FAILED, now=site.now)
    reasons = {1: "cannot be resumed: its state was kept for 30 days.", 2: "the server keeps no state of it"}
    for number, reason in reasons.items():
        refused = browser.post_form(f"/tasks/{number}", f"/tasks/{number}/resume")
        assert (refused.status_code, reason in refused.text) == (409, True)
        assert 'id="resume"' not in browser.get(f"/tasks/{number}").text


def test_more_rounds_of_a_schedule_that_depends_on_their_number_are_said_to_be_another_training(site: Site) -> None:
    browser = site.user("lin")
    task = site.task("lin", num_rounds=3, schedule="cosine")
    site.run_rounds(task, 3)
    kept = Resumable(uid="b" * 32, round=3)
    site.store.tasks.move(task.uid, TaskState.COMPLETED, now=site.now, digest="a" * 64, resumable=kept)
    assert browser.post_form("/tasks/1", "/tasks/1/continue", rounds="5").status_code == 303
    (event,) = site.store.events.newest(task=1)
    assert event.text.endswith(
        "round 8; its learning rates depend on the number of rounds, so its model differs from that of a task with all"
    )
    assert "its learning rates depend on the number of rounds" in browser.get("/tasks/1").text


def test_a_completed_task_gets_more_rounds_by_a_button_or_says_why_not(site: Site) -> None:
    browser = site.user("lin")
    task = site.task("lin", num_rounds=3)
    site.run_rounds(task, 3)

    def ask(rounds: str) -> tuple[int, str]:
        answer = browser.post_form("/tasks/1", "/tasks/1/continue", rounds=rounds)
        return answer.status_code, answer.text

    assert (ask("5")[0], "has not finished" in ask("5")[1]) == (409, True)
    kept = Resumable(uid="b" * 32, round=3)
    site.store.tasks.move(task.uid, TaskState.COMPLETED, now=site.now, digest="a" * 64, resumable=kept)
    page = browser.get("/tasks/1").text
    assert "Continue after round 3" in page
    assert 'id="resume"' not in page
    for wrong in ("", "x", "0", "-1", "1.5", "99998"):
        status, text = ask(wrong)
        assert (status, "a whole number from 1 to 99997" in text) == (422, True), wrong
    assert ask(" 5 ")[0] == 303
    continued = site.store.tasks.get(1)
    assert continued is not None
    assert (continued.state, continued.uid, continued.settings.num_rounds) == (TaskState.PENDING, "b" * 32, 8)
    assert continued.digest is None
    assert [event.text for event in site.store.events.newest(task=1)] == ["lin continued the task to round 8"]
    site.store.tasks.claim_next(site.now)
    site.store.tasks.move(continued.uid, TaskState.RUNNING, now=site.now)
    gone = Resumable(problem="its state was kept for 30 days")
    site.store.tasks.move(continued.uid, TaskState.COMPLETED, now=site.now, resumable=gone, num_rounds=3)
    again = site.store.tasks.get(1)
    assert again is not None
    assert again.settings.num_rounds == 3
    status, text = ask("5")
    assert (status, "its state was kept for 30 days" in text) == (409, True)
    assert "Continue after" not in browser.get("/tasks/1").text


def test_checkpoints_are_downloaded_whole_in_part_and_not_twice(site: Site) -> None:
    browser = site.user("lin")
    task = site.task("lin")
    site.run_rounds(task, 10)
    checkpoint = site.finish(task, content=bytes(range(256)) * 100)
    whole = browser.get("/tasks/1/checkpoints/10")
    assert whole.content == bytes(range(256)) * 100
    assert whole.headers["ETag"] == f'"{checkpoint.digest}"'
    assert whole.headers["Content-Disposition"] == 'attachment; filename="task-1-round-0010.safetensors"'
    assert browser.get("/tasks/1/checkpoints/10", headers={"Range": "bytes=10-19"}).content == bytes(range(10, 20))
    assert browser.get("/tasks/1/checkpoints/10", headers={"Range": "bytes=99999-"}).status_code == 416
    unchanged = {"If-None-Match": whole.headers["ETag"]}
    assert browser.get("/tasks/1/checkpoints/10", headers=unchanged).status_code == 304
    assert browser.get("/tasks/1/checkpoints/10?part=json").json() == {"round": 1}
    assert browser.get("/tasks/1/checkpoints/9").status_code == 404
    site.store.checkpoints.mark_removed(1, 10, why="older than 30 days", now=site.now)
    gone = browser.get("/tasks/1/checkpoints/10")
    assert gone.status_code == 410
    assert "older than 30 days" in gone.text
    assert "older than 30 days" in browser.get("/tasks/1").text


@pytest.mark.parametrize("path", ["../secret.json", "/etc/passwd", "task-1/link.safetensors", "task-1", ""])
def test_a_download_never_leaves_the_checkpoints_folder(site: Site, path: str) -> None:
    browser = site.user("lin")
    task = site.task("lin")
    site.run_rounds(task, 10)
    checkpoint = site.finish(task)
    (site.folder / "secret.json").write_text("secret", encoding="utf-8")
    (site.folder / "checkpoints" / "task-1" / "link.safetensors").symlink_to(site.folder / "secret.json")
    site.store.checkpoints.record(task.uid, type(checkpoint)(10, path, checkpoint.digest, 1, site.now))
    for part in ("", "?part=json"):
        answer = browser.get(f"/tasks/1/checkpoints/10{part}")
        assert answer.status_code == 404
        assert "secret" not in answer.text


def test_rounds_are_downloaded_as_csv_and_json(site: Site) -> None:
    browser = site.user("lin")
    site.run_rounds(site.task("lin"), 3, missing=(17, 42))
    rows = list(csv.DictReader(io.StringIO(browser.get("/tasks/1/rounds.csv").text)))
    assert [row["round"] for row in rows] == ["0", "1", "2", "3"]
    assert (rows[3]["missing"], rows[3]["seconds_train"], rows[0]["seconds_train"]) == ("17 42", "6.1", "")
    assert float(rows[3]["recall_9"]) == pytest.approx(0.7)
    assert [rows[3][f"confusion_{place}"] for place in ("0_0", "0_1", "8_1", "9")] == ["0.25", "0.75", "0.75", ""]
    assert "Confusion matrix" in browser.get("/tasks/1").text
    document = json.loads(browser.get("/tasks/1/rounds.json").text)
    assert document["task"]["number"] == 1
    assert document["rounds"][3]["missing"] == [17, 42]


def test_many_tasks_are_shown_in_pages(site: Site) -> None:
    browser = site.user("lin")
    for _ in range(25):
        site.task("lin")
    first = browser.get("/tasks").text
    assert re.findall(r'href="/tasks/(\d+)"', first) == [str(n) for n in range(25, 5, -1)]
    second = browser.get(html.unescape(re.findall(r'rel="next" href="([^"]+)"', first)[0])).text
    assert re.findall(r'href="/tasks/(\d+)"', second) == ["5", "4", "3", "2", "1"]
    assert 'rel="next"' not in second
    assert browser.get("/tasks?before=x").status_code == 422
    assert browser.get(f"/tasks/{'9' * 30}").status_code == 404


def test_the_nodes_page_shows_who_is_there_and_what_they_hold(site: Site) -> None:
    browser = site.user("lin")
    assert "No node has announced itself yet" in browser.get("/nodes").text
    site.node("node-1")
    site.now += 36
    site.node("node-2", datasets=("digits",))
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", browser.get("/nodes").text))
    assert re.search(r"node-1 offline .* node-2 online", text)
    assert "28 × 28 × 1" in text
    assert "digits" in text
    assert "20 days left" in text
    assert "certificate expires soon" in text


def test_the_language_follows_the_browser_then_the_switch_then_the_user(site: Site) -> None:
    accounts.create_admin(site.store, "lin", PASSWORD, now=site.now)
    browser = site.browser(**{"Accept-Language": "zh-CN"})
    page = browser.get("/")
    assert '<html lang="zh-CN">' in page.text
    assert "共同训练一个模型" in page.text
    assert page.headers["Content-Language"] == "zh-CN"
    assert browser.post_form("/", "/language", language="en", next="/login").headers["Location"] == "/login"
    assert '<html lang="en">' in browser.get("/").text
    browser.log_in("lin")
    browser.post_form("/profile", "/language", language="zh_CN", next="/profile")
    elsewhere = site.browser(**{"Accept-Language": "en"}).log_in("lin")
    assert "我的任务" in elsewhere.get("/tasks").text
    assert browser.post_form("/profile", "/language", language="xx", next="//evil").headers["Location"] == "/tasks"


def test_every_page_is_rendered_in_chinese_without_english_left(site: Site) -> None:
    site.node()
    task = None
    browser = site.admin("管理员")
    browser.post_form("/profile", "/language", language="zh_CN")
    task = site.task("管理员")
    figures = {"norm": 1.0, "norm_ratio": 1.0, "cosine": 0.5}
    site.run_rounds(task, 3, screening=({**LEFT_OUT, "outside": "", "figures": figures},))
    names = "fedsim|JSON|CSV|English|mnist|node|torch|sequential|cpu|API|admin|processor"
    for page in (
        "/",
        "/tasks",
        "/tasks/1",
        "/tasks/new",
        "/nodes",
        "/profile",
        "/admin/users",
        "/admin/tasks",
        "/nope",
    ):
        text = re.sub(
            r"<time.*?</time>|<svg.*?</svg>|<option.*?</option>|<dd.*?</dd>|<span class=\"known\".*?</span>",
            " ",
            browser.get(page).text,
            flags=re.DOTALL,
        )
        words = re.sub(r"<[^>]+>", " ", text.split("<body>")[1])
        english = set(re.findall(r"\b[a-z]{4,}(?: [a-z]{2,})+\b", words)) - set(names.split("|"))
        assert english == set(), page


HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def test_every_answer_carries_the_secure_headers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = site.user("lin")
    monkeypatch.setattr(site.store.nodes, "seen", lambda: 1 / 0)
    expected = {
        "/": 200, "/tasks": 200, "/static/app.css": 200, "/healthz": 200, "/nope": 404, "/api/v1/nope": 404,
        "/admin/users": 403, "/nodes": 500, "/tasks/new": 500, "/static/../app.py": 404, "/static/nope": 404,
    }  # fmt: skip
    for page, status in expected.items():
        answer = browser.get(page)
        assert answer.status_code == status, page
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, (page, name)
        policy = answer.headers["Content-Security-Policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        for directive in ("object-src", "base-uri", "frame-ancestors"):
            assert f"{directive} 'none'" in policy
        kind = answer.headers["Content-Type"]
        assert "charset" in kind.lower() or kind == "application/json", page
    icon = browser.get("/static/icon.svg")
    assert icon.headers["Content-Type"] == "image/svg+xml; charset=UTF-8"
    secure = site.browser(url="https://lab.example").get("/login").headers
    assert secure["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains"


def test_no_page_needs_inline_script_or_style(site: Site) -> None:
    site.node()
    browser = site.admin()
    site.run_rounds(site.task("root"), 3)
    for page in ("/", "/login", "/tasks", "/tasks/1", "/tasks/new", "/nodes", "/profile", "/admin/users"):
        text = browser.get(page).text
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", text), page
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text), page


def test_static_files_are_kept_by_browsers_until_their_content_changes(site: Site) -> None:
    browser = site.browser()
    for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', browser.get("/").text):
        answer = browser.get(path)
        assert answer.status_code == 200, path
        assert "immutable" in answer.headers["Cache-Control"]


def test_pages_of_people_are_never_cached(site: Site) -> None:
    browser = site.user("lin")
    assert browser.get("/tasks").headers["Cache-Control"] == "no-store"


def test_errors_are_pages_in_the_visitors_language(site: Site) -> None:
    browser = site.browser(**{"Accept-Language": "zh"})
    assert "未找到" in browser.get("/nope").text
    wrong_method = browser.get("/logout")
    assert wrong_method.status_code == 405
    assert wrong_method.headers["Allow"] == "POST"
    assert "请求方法不支持" in wrong_method.text
    too_large = browser.post("/login", content=b"a" * 70_000)
    assert too_large.status_code == 413
    assert "64 KiB" in too_large.text
    assert browser.post("/login", content=iter([b"a=b"])).status_code == 411
    assert browser.post("/login", json={}).status_code == 415
    assert (
        browser.post(
            "/login", content=b"a=%ff", headers={"Content-Type": "application/x-www-form-urlencoded"}
        ).status_code
        == 400
    )


def test_a_database_that_is_away_gives_503_with_a_page_and_comes_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = site.user("lin")

    def away(*_: object, **__: object) -> None:
        raise Unavailable("the database is being tested")

    with monkeypatch.context() as patch:
        for part, name in ((site.store.sessions, "get"), (site.store, "check"), (site.store.tasks, "newest")):
            patch.setattr(part, name, away)
        answer = browser.get("/tasks")
        assert answer.status_code == 503
        assert "database does not answer" in answer.text
        assert answer.headers["Retry-After"] == "5"
        health = browser.get("/healthz")
        assert health.status_code == 503
        assert health.json() == {"error": "The database does not answer. Try again in a moment."}
    assert browser.get("/tasks").status_code == 200
    assert browser.get("/healthz").json()["status"] == "ok"


def test_page_and_api_show_the_clients_of_the_plan(site: Site) -> None:
    browser = site.user("lin")
    task = site.task("lin", partition="local", fraction_train=1.0)
    site.store.tasks.set_nodes(task.uid, ("bank-a", "bank-b", "bank-c"))
    shown = browser.get(f"/api/v1/tasks/{task.number}").json()["task"]
    assert (shown["num_clients"], shown["cohort_size"]) == (3, 3)
    page = browser.get(f"/tasks/{task.number}").text
    assert page.count("<dt>Clients in each round</dt><dd>3</dd>") == 2
    assert "<dd>100</dd>" not in page
