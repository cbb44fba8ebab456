"""What a person does in a browser, from the start page to the downloaded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browser_support import WIDE, OpenBrowser, Web
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from walk_support import ENGLISH, IN_BOTH_LANGUAGES, PATIENCE, Shots, complaints, download, fill_in, find, send, walk
from web_support import PASSWORD

from fedsim.store.records import Task, TaskState, UserRole, UserState

pytestmark = pytest.mark.browser


class StoreDriver:
    """Moves a task through the database, where there is no server."""

    def __init__(self, web: Web, words: dict[str, str]) -> None:
        self.site, self.words = web.site, words

    def play(self, number: int, sees: Callable[[str, str], None], shots: Shots) -> None:
        sees("#live .state", self.words["waiting"])
        shots.take("task-waiting")
        self.begin(number)
        sees("#live .state", self.words["running"])
        sees(".bigbar", "3")
        self.site.run_rounds(self._task(number), 6, first=3, missing=(17, 42))
        sees(".bigbar", "7")
        shots.take("task-running")
        self.finish(number)

    def begin(self, number: int) -> None:
        self.site.run_rounds(self._task(number), 2)

    def finish(self, number: int) -> None:
        task = self._task(number)
        self.site.run_rounds(task, task.settings.num_rounds, first=7)
        self.site.finish(task)

    def _task(self, number: int) -> Task:
        task = self.site.store.tasks.get(number)
        assert task is not None
        return task


@IN_BOTH_LANGUAGES
def test_a_person_walks_from_registering_to_the_downloaded_model(
    web: Web,
    open_browser: OpenBrowser,
    screenshots: Path,
    language: str,
    size: tuple[int, int],
    words: dict[str, str],
) -> None:
    web.site.node("node-1")
    web.site.node("node-2", datasets=("mnist", "digits"))
    browser = open_browser(size, language)
    number = walk(browser, web.url, StoreDriver(web, words).play, Shots(browser, screenshots, language, size[0]), words)
    assert download(browser, web.url, number) == b"the model's bytes"
    assert complaints(browser) == []


def test_everything_works_with_javascript_off(web: Web, open_browser: OpenBrowser, screenshots: Path) -> None:
    web.site.node("node-1", label_counts=(6000,) * 10)
    browser = open_browser(WIDE, "en", javascript=False)
    driver, shots = StoreDriver(web, ENGLISH), Shots(browser, screenshots, "no-script", WIDE[0])
    browser.get(f"{web.url}/register")
    fill_in(browser, name="lin", password=PASSWORD)
    find(browser, "main form button.primary").click()
    patient = WebDriverWait(browser, PATIENCE, poll_frequency=0.05)
    patient.until(lambda _: browser.current_url == f"{web.url}/tasks")
    browser.get(f"{web.url}/tasks/new")
    fill_in(browser, title="no script", num_rounds="0")
    find(browser, "main form button.primary").click()
    patient.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#num_rounds-note .problem"))
    assert find(browser, "[name=title]").get_attribute("value") == "no script"
    fill_in(browser, num_rounds="10", num_clients="30")
    find(browser, "[name=preview]").click()
    patient.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#partition-shown svg .discs path"))
    shots.take("partition-shown")
    find(browser, "main form button.primary").click()
    patient.until(lambda _: browser.current_url == f"{web.url}/tasks/1")
    driver.begin(1)
    patient.until(lambda _: "running" in browser.page_source)  # the page reloads itself
    assert browser.find_elements(By.CSS_SELECTOR, "figure svg polyline")
    assert not browser.find_elements(By.CSS_SELECTOR, ".uplot")
    shots.take("task-running")
    driver.finish(1)
    patient.until(lambda _: "completed" in browser.page_source)
    find(browser, "#confirm-delete summary").click()
    find(browser, "#delete").click()
    patient.until(lambda _: browser.current_url == f"{web.url}/tasks")
    assert "is being deleted" in browser.page_source
    assert web.site.store.tasks.to_delete()


def test_dark_pages_and_an_administrators_view(web: Web, open_browser: OpenBrowser, screenshots: Path) -> None:
    web.site.node("node-1", label_counts=(6000,) * 10)
    web.site.admin("root")
    task = web.site.task("root", title="a failed one")
    web.site.run_rounds(task, 4, missing=(1,))
    web.site.store.tasks.move(
        task.uid, TaskState.FAILED, reason="diverged in round 5: the loss is NaN", now=web.site.now
    )
    web.site.store.users.create("wang", "!", role=UserRole.USER, state=UserState.WAITING, language="", now=web.site.now)
    browser = open_browser(WIDE, "zh-CN", dark=True)
    shots = Shots(browser, screenshots, "dark", WIDE[0])
    browser.get(f"{web.url}/login")
    fill_in(browser, name="root", password=PASSWORD)
    send(browser)
    for page in ("tasks/1", "admin/users", "admin/tasks", "tasks/new", "nope"):
        browser.get(f"{web.url}/{page}")
        for summary in browser.find_elements(By.CSS_SELECTOR, "#partition > summary"):
            summary.click()
        shots.take(page.replace("/", "-"))
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(20, 24, 27)"
