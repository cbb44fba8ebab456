"""A task of very many rounds is shown as quickly as a small one: everything that is read or sent is bounded."""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from time import thread_time
from typing import Any

import pytest
from sqlalchemy import insert
from web_support import Browser, Site, make_site, round_record

from fedsim.cli.api import ApiClient
from fedsim.settings import TaskSettings
from fedsim.store.records import Checkpoint, TaskState
from fedsim.store.schema import checkpoints, rounds
from fedsim.web import accounts, charts

NUM_ROUNDS = 10_000
HTMX = {"HX-Request": "true"}
# Of the processor, by the thread that asks, in which pages are made: several times what it takes, a fraction of what
# reading every round takes.
ENOUGH_SECONDS = 0.4
ENOUGH_BYTES = 150_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Task 1 of lin has run 10,000 rounds, tested every fifth, and saved each tenth."""
    site = make_site(tmp_path_factory.mktemp("web"))
    site.user("lin")
    settings = TaskSettings(num_rounds=NUM_ROUNDS, evaluate_every=5, save_every=10)
    task = site.store.tasks.create(1, settings, "ab" * 16, site.now)
    site.store.tasks.claim_next(site.now)
    site.store.tasks.move(task.uid, TaskState.RUNNING, now=site.now)
    untested: dict[str, Any] = {"metrics": {}, "class_metrics": {}}
    with site.store.database.writing() as connection:
        rows = (
            asdict(round_record(number, number / NUM_ROUNDS, site.now)) | ({} if number % 5 == 0 else untested)
            for number in range(NUM_ROUNDS + 1)
        )
        connection.execute(insert(rounds), [{"task": 1, **row} for row in rows])
        saved = [Checkpoint(number, f"{number}", "cd" * 32, 1, site.now) for number in range(10, NUM_ROUNDS + 1, 10)]
        connection.execute(insert(checkpoints), [{"task": 1, **asdict(checkpoint)} for checkpoint in saved])
    yield site
    site.store.close()


@pytest.fixture
def browser(site: Site) -> Browser:
    user = site.store.users.get(1)
    assert user is not None
    session_id, _ = accounts.start_session(site.store, site.config, user, old=None, now=site.now)
    browser = site.browser()
    browser.cookies.set("fedsim_session", session_id, domain="127.0.0.1", path="/")
    return browser


def quick(browser: Browser, path: str, **headers: str) -> str:
    seconds = []
    for _ in range(2):  # the first one may compile templates
        began = thread_time()
        answer = browser.get(path, headers=headers)
        seconds.append(thread_time() - began)
    assert answer.status_code == 200
    assert min(seconds) < ENOUGH_SECONDS
    assert len(answer.content) < ENOUGH_BYTES
    return html.unescape(answer.text)


def shown_rounds(page: str) -> list[int]:
    table = re.findall(r'<table class="rounds">.*?</table>', page, re.DOTALL)[0]
    return [int(number) for number in re.findall(r'<tr><td class="num">(\d+)</td>', table)]


def older(page: str, part: str) -> str:
    return re.findall(rf'id="{part}".*?rel="next" href="([^"#]+)', page, re.DOTALL)[0]


def test_the_page_and_its_live_part_are_quick_and_small(browser: Browser) -> None:
    page = quick(browser, "/tasks/1")
    assert shown_rounds(page) == list(range(NUM_ROUNDS, NUM_ROUNDS - 50, -1))
    assert f"50 of {NUM_ROUNDS + 1} rounds" in page
    assert "100.00 %" in page
    assert f"After round {NUM_ROUNDS}" in page
    live = re.findall(r'hx-get="([^"]+)"', page)[0]
    assert browser.get(live, headers=HTMX).status_code == 204
    assert len(quick(browser, "/tasks/1?seen=old", **HTMX)) < len(page)


def test_curves_are_drawn_from_few_rounds_that_span_all(browser: Browser) -> None:
    page = quick(browser, "/tasks/1")
    curves = [line.split() for line in re.findall(r'<polyline class="\w+" points="([^"]+)"', page)]
    assert len(curves) == 3
    for points in curves:
        assert 100 < len(points) <= charts.MAX_POINTS
        assert float(points[0].split(",")[0]) < charts.LEFT + 5
        assert float(points[-1].split(",")[0]) == charts.WIDTH - charts.RIGHT


def test_older_rounds_and_checkpoints_are_pages_that_keep_each_others_place(browser: Browser) -> None:
    second = quick(browser, older(quick(browser, "/tasks/1"), "rounds"))
    assert shown_rounds(second) == list(range(NUM_ROUNDS - 50, NUM_ROUNDS - 100, -1))
    both = quick(browser, older(second, "checkpoints"))
    assert shown_rounds(both) == shown_rounds(second)
    assert f'href="/tasks/1/checkpoints/{NUM_ROUNDS - 200}"' in both
    assert f'href="/tasks/1/checkpoints/{NUM_ROUNDS}"' not in both
    live = re.findall(r'hx-get="([^"]+)"', both)[0]
    assert browser.get(live, headers=HTMX).status_code == 204, "the live part is of the page that is looked at"
    last = quick(browser, "/tasks/1?before=3")
    assert shown_rounds(last) == [2, 1, 0]
    assert "Newest" in last
    assert quick(browser, "/tasks/1?before=0&saved_before=1")


def test_the_api_gives_pages_and_says_how_many_there_are(browser: Browser) -> None:
    began = thread_time()
    first = browser.get("/api/v1/tasks/1/rounds").json()
    assert ([record["round"] for record in first["rounds"]], first["total"]) == ([*range(1000)], NUM_ROUNDS + 1)
    behind = browser.get(f"/api/v1/tasks/1/rounds?after={NUM_ROUNDS - 3}&limit=999999").json()["rounds"]
    assert [record["round"] for record in behind] == [NUM_ROUNDS - 2, NUM_ROUNDS - 1, NUM_ROUNDS]
    newest = browser.get("/api/v1/tasks/1/rounds?newest=1&limit=2").json()["rounds"]
    assert [record["round"] for record in newest] == [NUM_ROUNDS - 1, NUM_ROUNDS]
    saved = browser.get(f"/api/v1/tasks/1/checkpoints?after={NUM_ROUNDS - 30}").json()["checkpoints"]
    assert [checkpoint["round"] for checkpoint in saved] == [NUM_ROUNDS - 20, NUM_ROUNDS - 10, NUM_ROUNDS]
    assert len(browser.get("/api/v1/tasks/1/checkpoints").json()["checkpoints"]) == 1000
    assert thread_time() - began < 5 * ENOUGH_SECONDS


def test_downloads_are_complete_and_made_piece_by_piece(site: Site, browser: Browser) -> None:
    session = f"fedsim_session={browser.cookies['fedsim_session']}"
    for name, read in (("rounds.csv", csv_rounds), ("rounds.json", json_rounds)):
        asked = {"REQUEST_METHOD": "GET", "PATH_INFO": f"/tasks/1/{name}"}
        environ = {**asked, "HTTP_COOKIE": session, "REMOTE_ADDR": "127.0.0.1"}
        pieces = list(site.app(environ, lambda *_: None))
        assert max(len(piece) for piece in pieces) < sum(len(piece) for piece in pieces) / 5
        assert read(b"".join(pieces).decode()) == [*range(NUM_ROUNDS + 1)]


def csv_rounds(content: str) -> list[int]:
    return [int(row["round"]) for row in csv.DictReader(content.splitlines())]


def json_rounds(content: str) -> list[int]:
    document = json.loads(content)
    assert document["task"]["number"] == 1
    return [record["round"] for record in document["rounds"]]


def test_the_commands_question_is_complete(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    api = ApiClient("http://127.0.0.1", "")
    monkeypatch.setattr(api, "_http", browser)
    assert [record["round"] for record in api.rounds(1)] == [*range(NUM_ROUNDS + 1)]
    assert len(api.checkpoints(1)) == NUM_ROUNDS // 10
    assert [record["round"] for record in api.newest_rounds(1, 2)[0]] == [NUM_ROUNDS - 1, NUM_ROUNDS]
