"""Submitting: nothing that was typed is lost when the session ends, and one form is one task."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from web_support import PASSWORD, Browser, Site, make_site

from fedsim.web.forms import MAX_TYPED_CHARACTERS

SCRIPT = "<script>alert('x')</script>\"'&"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path)
    yield made
    made.store.close()


def fields_of(page: str) -> dict[str, str]:
    """What a browser would send with the page's largest form, hidden fields and all."""
    form = max(re.findall(r"<form.*?</form>", page, re.DOTALL), key=len)
    inputs = re.findall(r'<input[^>]*?name="([\w.]+)"[^>]*?value="([^"]*)"', form, re.DOTALL)
    menus = re.findall(r'<select id="(\w+)".*?<option value="([^"]*)" selected', form, re.DOTALL)
    return {name: html.unescape(value) for name, value in inputs + menus}


def log_in_on(browser: Browser, page: str, **changed: str) -> str:
    """Submit the log-in form of a page; returns the next page."""
    answer = browser.post("/login", data=fields_of(page) | {"name": "lin", "password": PASSWORD} | changed)
    assert answer.status_code == (200 if not changed else 403), answer.text
    return answer.text


def test_what_was_typed_is_there_again_after_the_log_in_and_is_one_task_when_submitted(site: Site) -> None:
    site.node()
    browser = site.user("lin")
    first = site.task("lin", num_rounds=7)
    form = fields_of(browser.get(f"/tasks/new?from={first.number}").text)
    typed = form | {"title": SCRIPT, "num_rounds": " 12x ", "partition": "iid", "password": "a secret"}
    site.now += 13 * 3600
    answer = browser.post("/tasks/new", data=typed)
    assert answer.status_code == 403
    assert "Your session has expired" in answer.text
    assert SCRIPT not in answer.text
    assert "a secret" not in answer.text
    page = log_in_on(browser, log_in_on(browser, answer.text, password="wrong"))
    assert "Nothing has been submitted yet" in page
    assert "Task 1 again, with changes" in page
    again = fields_of(page)
    expected = {name: value for name, value in typed.items() if name not in {"csrf", "password"}}
    assert {name: value for name, value in again.items() if name != "csrf"} == expected
    assert [task.number for task in site.store.tasks.newest()] == [1]
    assert browser.post("/tasks/new", data=again | {"num_rounds": "12"}).headers["Location"] == "/tasks/2"


def test_a_form_from_before_another_log_in_comes_back_as_typed(site: Site) -> None:
    browser = site.user("lin")
    form = fields_of(browser.get("/tasks/new").text)
    browser.log_in("lin")
    answer = browser.post("/tasks/new", data=form | {"title": "typed long ago"})
    assert answer.status_code == 403
    assert "You have logged in again" in answer.text
    again = fields_of(answer.text)
    assert again["title"] == "typed long ago"
    assert site.store.tasks.newest() == []
    assert browser.post("/tasks/new", data=again).headers["Location"] == "/tasks/1"


def test_a_log_in_page_that_was_open_for_days_keeps_what_it_carries(site: Site) -> None:
    site.user("lin")
    page = site.browser().post("/tasks/new", data={"title": "typed"}).text
    answer = site.browser().post("/login", data=fields_of(page) | {"name": "lin", "password": PASSWORD})
    assert answer.status_code == 403
    assert "open for too long" in answer.text
    assert PASSWORD not in answer.text
    assert fields_of(answer.text)["kept.title"] == "typed"


def test_only_the_forms_own_fields_are_carried_and_only_so_much(site: Site) -> None:
    sent = {"title": "x" * 10_000, "next": "//evil.example", "name": "y", "kept.password": "z", "csrf": "w"}
    carried = fields_of(site.browser().post("/tasks/new", data=sent).text)
    assert carried["kept.title"] == "x" * MAX_TYPED_CHARACTERS
    assert carried["next"] == "/tasks"
    assert {name for name in carried if name.startswith("kept.")} == {"kept.title"}


def test_another_sites_page_can_plant_nothing_in_the_form(site: Site) -> None:
    for header in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = site.browser().post("/tasks/new", data={"title": "planted"}, headers=header)
        assert answer.status_code == 403
        assert "planted" not in answer.text


def test_logging_in_leads_back_to_the_form_for_running_again(site: Site) -> None:
    browser = site.user("lin")
    site.task("lin", num_rounds=7)
    site.now += 13 * 3600
    page = browser.get(browser.get("/tasks/new?from=1").headers["Location"])
    answer = browser.post("/login", data=fields_of(page.text) | {"name": "lin", "password": PASSWORD})
    assert answer.headers["Location"] == "/tasks/new?from=1"


def test_a_form_sent_twice_is_one_task(site: Site) -> None:
    browser = site.user("lin")
    form = fields_of(browser.get("/tasks/new").text)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: browser.post("/tasks/new", data=form), range(4)))
    assert {(answer.status_code, answer.headers["Location"]) for answer in answers} == {(303, "/tasks/1")}
    assert len(site.store.tasks.newest()) == 1
    assert site.notifier.notifications == [("submitted", 1)]
    assert [event.kind for event in site.store.events.newest(task=1)] == ["submitted"]


def test_two_forms_are_two_tasks_and_so_is_one_that_was_changed(site: Site) -> None:
    browser = site.user("lin")
    for number in (1, 2):
        form = fields_of(browser.get("/tasks/new").text)
        assert browser.post("/tasks/new", data=form).headers["Location"] == f"/tasks/{number}"
    assert browser.post("/tasks/new", data=form | {"seed": "1"}).headers["Location"] == "/tasks/3"


def test_a_form_of_another_user_is_not_theirs(site: Site) -> None:
    form = {"submission": "the same", "title": "x"}
    for name, number in (("lin", 1), ("wang", 2)):
        assert site.user(name).post_form("/tasks/new", **form).headers["Location"] == f"/tasks/{number}"


def test_the_api_takes_a_key_that_makes_sending_again_safe(site: Site) -> None:
    browser = site.user("lin")
    secret = browser.post_form("/profile", "/profile/tokens", label="a program").text
    token = secret.split('id="secret">')[1].split("<")[0]
    program = site.browser(url="http://127.0.0.1/api/v1", Authorization=f"Bearer {token}")
    headers = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
    answers = [program.post("tasks", json={"num_rounds": 3}, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert {answer.headers["Location"] for answer in answers} == {"/api/v1/tasks/1"}
    assert answers[0].json()["task"] == answers[1].json()["task"]
    assert program.post("tasks", json={"num_rounds": 4}, headers=headers).status_code == 201
    assert [program.post("tasks", json={"num_rounds": 3}).status_code for _ in range(2)] == [201, 201]
    for odd in ("x" * 256, "a\tb"):
        refused = program.post("tasks", json={}, headers={"Idempotency-Key": odd})
        assert refused.status_code == 400
        assert "at most 255" in refused.json()["error"]


def test_a_user_has_a_share_of_the_queue_and_tasks_have_a_largest_size(tmp_path: Path) -> None:
    site = make_site(tmp_path, max_unfinished_tasks=2, max_task_size=1000, requests_per_minute=20)
    site.node()
    browser = site.user("lin")
    form = fields_of(browser.get("/tasks/new").text) | {"num_rounds": "1"}
    for number in (1, 2):
        assert browser.post("/tasks/new", data=form | {"submission": f"{number}"}).headers["Location"]
    third = browser.post("/tasks/new", data=form | {"submission": "3"})
    assert third.status_code == 429
    assert "You have 2 unfinished tasks" in third.text
    large = browser.post("/tasks/new", data=form | {"num_rounds": "100", "submission": "4"})
    assert large.status_code == 422
    assert "rounds × epochs × clients in each round are 5000, at most 1000 are allowed here" in large.text
    assert [task.number for task in site.store.tasks.newest()] == [2, 1]

    answers = [browser.get("/tasks") for _ in range(20)]
    assert [answer.status_code for answer in answers] == [200] * 15 + [429] * 5
    assert (answers[-1].headers["Retry-After"], "Too many requests" in answers[-1].text) == ("3", True)
    assert site.user("eve").get("/tasks").status_code == 200
    site.now += 3
    assert browser.get("/tasks").status_code == 200
    site.store.close()
