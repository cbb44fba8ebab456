"""A person's hands and eyes in a browser: filling in, clicking, seeing, and the walk from registering to the end."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from browser_support import NARROW, WIDE
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from web_support import PASSWORD

PATIENCE = 90
ENGLISH = {"waiting": "waiting", "running": "running", "completed": "completed"}
CHINESE = {"waiting": "等待中", "running": "运行中", "completed": "已完成"}

IN_BOTH_LANGUAGES = pytest.mark.parametrize(
    ("language", "size", "words"),
    [("en", WIDE, ENGLISH), ("zh-CN", NARROW, CHINESE)],
    ids=["english-wide", "chinese-narrow"],
)

# Does the server's part for task `number`, and says through `sees(selector, text)` what the page must show meanwhile.
# With the real platform running there is nothing to do but to see.
Play = Callable[[int, Callable[[str, str], None], "Shots"], None]


class Shots:
    """Takes screenshots of whole pages, and holds every page to fit its window."""

    def __init__(self, browser: Chrome, folder: Path, name: str, width: int) -> None:
        self.browser, self.folder, self.name, self.width = browser, folder, name, width
        self.count = 0

    def take(self, what: str) -> None:
        self.count += 1
        size = self.browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": self.width, "height": size["height"], "scale": 1}
        shot = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path = self.folder / f"{self.name}-{self.count:02d}-{what}.png"
        path.write_bytes(base64.b64decode(shot["data"]))
        assert size["width"] <= self.width, f"{what} is {size['width']} wide in a window of {self.width}"


def find(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def await_text(browser: Chrome, selector: str, text: str) -> None:
    def there(_: Chrome) -> bool:
        # Read in the page itself: an element found a moment ago may just have been replaced.
        script = "return document.querySelector(arguments[0])?.textContent ?? ''"
        return text in str(browser.execute_script(script, selector))

    WebDriverWait(browser, PATIENCE, poll_frequency=0.05).until(there, f"{text!r} never came in {selector}")


def fill_in(browser: Chrome, **fields: str) -> None:
    for name, value in fields.items():
        element = find(browser, f"main [name={name}]")
        element.clear()
        element.send_keys(value)


def click(browser: Chrome, selector: str) -> None:
    """Click on what leads to another page, and wait until that one is there."""
    browser.execute_script("window.leaving = true")
    find(browser, selector).click()
    arrived = "return !window.leaving && document.readyState === 'complete'"
    WebDriverWait(browser, PATIENCE, poll_frequency=0.05).until(
        lambda _: browser.execute_script(arrived), f"{selector} leads nowhere"
    )


def send(browser: Chrome) -> None:
    click(browser, "main form button.primary")


def enter(browser: Chrome, url: str, shots: Shots, name: str) -> None:
    """Register (which is open, so one is logged in), log out, log in."""
    browser.get(url)
    shots.take("home")
    browser.get(f"{url}/register")
    fill_in(browser, name=name, password="short")
    send(browser)
    assert find(browser, "[name=name]").get_attribute("value") == name
    shots.take("register-problem")
    fill_in(browser, name=name, password=PASSWORD)
    send(browser)
    click(browser, "form[action='/logout'] button")
    browser.get(f"{url}/tasks")
    shots.take("login")
    fill_in(browser, name=name, password=PASSWORD)
    send(browser)
    assert browser.current_url == f"{url}/tasks"


def submit(browser: Chrome, url: str, shots: Shots, title: str) -> int:
    """First with mistakes, which come back beside their fields, then right."""
    browser.get(f"{url}/tasks/new")
    shots.take("new-task")
    fill_in(browser, title=title, dataset="no-such-data", num_clients="0", local_learning_rate="fast")
    send(browser)
    assert find(browser, "#num_clients-note .problem").text
    assert find(browser, "#local_learning_rate-note .problem").text
    assert "mnist" in find(browser, "#dataset-note .problem").text
    assert find(browser, "[name=title]").get_attribute("value") == title
    assert find(browser, "[name=local_learning_rate]").get_attribute("value") == "fast"
    shots.take("new-task-problems")
    fill_in(browser, dataset="mnist", num_clients="100", local_learning_rate="0.05")
    send(browser)
    number = int(browser.current_url.rsplit("/", 1)[1])
    assert title in find(browser, "h1").text
    return number


def walk(browser: Chrome, url: str, play: Play, shots: Shots, words: dict[str, str]) -> int:
    """Register, log in, submit, watch the page live, see the end; returns the task's number."""
    enter(browser, url, shots, "lin")
    number = submit(browser, url, shots, "first try")
    browser.execute_script("window.sameDocument = true; document.getElementById('settings').open = true")
    play(number, lambda selector, text: await_text(browser, selector, text), shots)
    await_text(browser, "#live .state", words["completed"])
    await_text(browser, "#announce", words["completed"])
    assert browser.execute_script("return window.sameDocument") is True, "the page was loaded again"
    drawn, charts = (
        browser.execute_script(f"return document.querySelectorAll('{selector}').length")
        for selector in (".uplot", ".charts .chart")
    )
    assert drawn == charts >= 2, "each curve has its chart"
    shots.take("task-completed")
    for page in ("tasks", "nodes", "profile"):
        browser.get(f"{url}/{page}")
        shots.take(page)
    return number


def download(browser: Chrome, url: str, number: int) -> bytes:
    """What the page's download link gives, with the browser's cookies."""
    browser.get(f"{url}/tasks/{number}")
    link = find(browser, ".checkpoints a[download]").get_attribute("href")
    cookies = {cookie["name"]: cookie["value"] for cookie in browser.get_cookies()}
    answer = httpx.get(str(link), cookies=cookies)
    assert answer.status_code == 200
    return answer.content


def complaints(browser: Chrome) -> list[str]:
    """What the browser's console holds against our pages: refused scripts, failed requests. 422 is meant."""
    return [entry["message"] for entry in browser.get_log("browser") if "422" not in entry["message"]]
