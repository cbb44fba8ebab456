"""The same walk before the whole platform: server, receivers and nodes train for real while the browser looks on.

In one language and size; in the others test_browser_walk.py walks, faster than nodes can train.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browser_support import WIDE, OpenBrowser
from platform_support import Platform
from presence import real_data
from walk_support import ENGLISH, Shots, complaints, download, walk

from fedsim.testing.local_cluster import NodeSpec

pytestmark = pytest.mark.browser


def test_a_person_trains_a_model_on_the_whole_platform(
    tmp_path: Path, open_browser: OpenBrowser, screenshots: Path
) -> None:
    dataset = {"name": "mnist", "path": "mnist", "share": True}
    data = real_data("mnist").parent
    nodes = [NodeSpec(name, data, [dataset], {"clients": 50}) for name in ("node-a", "node-b")]

    def look_on(_: int, sees: Callable[[str, str], None], shots: Shots) -> None:
        sees("#live .state", ENGLISH["running"])
        sees(".bigbar", "5")
        shots.take("task-running")

    with Platform(tmp_path / "lab", nodes) as lab:
        lab.await_row(lambda: len(lab.store.nodes.all()) == 2 or None, what="for both nodes to announce themselves")
        browser = open_browser(WIDE, "en")
        number = walk(browser, lab.url, look_on, Shots(browser, screenshots, "platform", WIDE[0]), ENGLISH)
        saved = lab.store.checkpoints.of_task(number)[-1]
        model = download(browser, lab.url, number)
        assert model == (lab.server_spool / "checkpoints" / saved.path).read_bytes()
        assert len(model) == saved.size
        assert complaints(browser) == []
