"""A real browser before the real `fedsim-web` process; the database is moved on by the test, as the server would.

Where the whole platform runs, `walk` (test_browser_walk.py) takes its address and a driver that only waits.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from browser_support import STAND_STILL, WIDE, OpenBrowser, Web
from presence import missing
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from web_support import make_site


@pytest.fixture(scope="session")
def driver_path() -> str:
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        missing("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    return driver


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = os.environ.get("FEDSIM_SCREENSHOTS")
    folder = Path(wanted) if wanted else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """The web as its unit starts it, on a port that the system chooses."""
    site = make_site(tmp_path)
    path = tmp_path / "web.yml"
    settings = site.config.model_dump(mode="json", exclude_none=True) | {"listen": {"address": "127.0.0.1", "port": 0}}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    program = Path(sys.executable).with_name("fedsim-web")
    environment = {**os.environ, "NO_COLOR": "1"}
    with subprocess.Popen([program, "--config", path], stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            found = next(
                (m for line in process.stderr if (m := re.search(r"ready .*address=(http://\S+)", line))), None
            )
            assert found, "fedsim-web ended before it was ready"
            yield Web(found[1], site)
        finally:
            process.terminate()
            _, said = process.communicate(timeout=20)
            site.store.close()
    assert (process.returncode, "Traceback" in said) == (0, False), said


@pytest.fixture
def open_browser(driver_path: str, tmp_path: Path) -> Iterator[OpenBrowser]:
    """Opens browsers of a size and language, with or without JavaScript; they close when the test ends."""
    opened: list[Chrome] = []

    def start(
        size: tuple[int, int] = WIDE, language: str = "en", *, javascript: bool = True, dark: bool = False
    ) -> Chrome:
        options = ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in STAND_STILL:
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={tmp_path / f'profile-{len(opened)}'}")
        options.add_argument(f"--window-size={size[0]},{size[1]}")
        downloads = tmp_path / "downloads"
        preferences: dict[str, object] = {
            "intl.accept_languages": language,
            "download.default_directory": str(downloads),
        }
        if not javascript:
            preferences["profile.managed_default_content_settings.javascript"] = 2
        options.add_experimental_option("prefs", preferences)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = Chrome(options=options, service=Service(driver_path))
        opened.append(browser)
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        if dark:
            features = [{"name": "prefers-color-scheme", "value": "dark"}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return browser

    yield start
    for browser in opened:
        browser.quit()
