"""An owner decides on the node's page, with the browser alone: no JavaScript, wide and narrow, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from browser_support import NARROW, WIDE, OpenBrowser
from owner_support import OwnedNode, owned_node
from walk_support import Shots, click, complaints, find

pytestmark = pytest.mark.browser


@pytest.fixture
def node(tmp_path: Path) -> Iterator[OwnedNode]:
    with owned_node(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("size", "language", "dark"),
    [pytest.param(WIDE, "en", False, id="wide-en"), pytest.param(NARROW, "zh-CN", True, id="narrow-zh-CN-dark")],
)
def test_an_owner_reads_refuses_and_finds_it_in_the_log(
    node: OwnedNode, open_browser: OpenBrowser, screenshots: Path, size: tuple[int, int], language: str, *, dark: bool
) -> None:
    browser = open_browser(size, language, javascript=False, dark=dark)
    shots = Shots(browser, screenshots, f"owner-{language}-{size[0]}", size[0])
    browser.get(f"http://127.0.0.1:{node.server.server_port}{node.page.way_in}")
    assert find(browser, ".reason").text == "<b>study</b>"
    shots.take("pending")
    find(browser, "summary").click()
    shots.take("settings")
    find(browser, "input[name=reason]").send_keys("no vote of the ethics committee")
    daemon = Thread(target=node.decide)
    daemon.start()
    click(browser, "button[value=refuse]")
    daemon.join()
    assert find(browser, ".good").is_displayed()
    shots.take("refused")
    click(browser, "nav a[href='/audit']")
    assert "no vote of the ethics committee" in find(browser, "tbody").text
    shots.take("audit")
    assert complaints(browser) == []
