"""What browser tests share: window sizes, the web that they look at, and the type of what opens a browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from selenium.webdriver import Chrome
from web_support import Site

WIDE, NARROW = (1280, 900), (390, 844)
STAND_STILL = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-prefers-reduced-motion",
)


@dataclass
class Web:
    """A running `fedsim-web`, and the store behind it, through which the test plays the server's part."""

    url: str
    site: Site


OpenBrowser = Callable[..., Chrome]
