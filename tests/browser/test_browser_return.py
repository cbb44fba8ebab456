"""Coming back in a browser: to a form whose session has ended, to a task of many rounds, to a new password."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser_support import NARROW, WIDE, OpenBrowser, Web
from walk_support import Shots, await_text, click, complaints, fill_in, find, send
from web_support import PASSWORD, hashed_password

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("size", "language"),
    [
        pytest.param(WIDE, "en", id="wide-en"),
        pytest.param(NARROW, "zh-CN", id="narrow-zh-CN"),
        pytest.param(NARROW, "en", id="narrow-en", marks=pytest.mark.long),
        pytest.param(WIDE, "zh-CN", id="wide-zh-CN", marks=pytest.mark.long),
    ],
)
def test_what_was_typed_is_there_again_and_older_rounds_are_reached(
    web: Web, open_browser: OpenBrowser, screenshots: Path, language: str, size: tuple[int, int]
) -> None:
    web.site.node("node-1")
    web.site.admin("lin")
    browser = open_browser(size, language)
    shots = Shots(browser, screenshots, f"return-{language}-{size[0]}", size[0])
    browser.get(f"{web.url}/login")
    fill_in(browser, name="lin", password=PASSWORD)
    send(browser)
    browser.get(f"{web.url}/tasks/new")
    fill_in(browser, title="typed for an hour", num_rounds="400")
    web.site.store.users.set_password_hash(1, hashed_password())  # which ends every session
    send(browser)
    shots.take("login")
    fill_in(browser, name="lin", password=PASSWORD)
    send(browser)
    assert find(browser, "[name=title]").get_attribute("value") == "typed for an hour"
    shots.take("form-again")
    send(browser)
    assert browser.current_url == f"{web.url}/tasks/1"
    task = web.site.store.tasks.get(1)
    assert task is not None
    assert task.settings.num_rounds == 400
    web.site.run_rounds(task, 120, missing=(17, 42))
    browser.get(f"{web.url}/tasks/1")
    shots.take("many-rounds")
    click(browser, "#rounds a[rel=next]")
    web.site.run_rounds(task, 121, first=121)
    await_text(browser, ".bigbar", "122")  # the live part came again, and is still of the older rounds
    assert find(browser, "table.rounds td:first-child").text == "70"
    shots.take("older-rounds")
    browser.get(f"{web.url}/profile")
    fill_in(browser, old=PASSWORD, new="another good one")
    click(browser, "form[action='/profile/password'] button")
    shots.take("password-changed")
    browser.get(f"{web.url}/admin/users")
    shots.take("users")
    assert [entry for entry in complaints(browser) if "403" not in entry] == []
