"""The web's own pages, as far as a program must read them: the token of their forms, and what they say."""

from __future__ import annotations

from html.parser import HTMLParser

import httpx

from fedsim.errors import Refused, Unavailable

VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


def read_page(url: str, http: httpx.Client, path: str) -> Page:
    """Get a page of the web at `url`, as a browser with the session of `http` would.

    Raises:
        Refused: the page says that this may not be.
        Unavailable: it is no page of fedsim's web.
    """
    response = http.get(f"{url}{path}")
    page = Page.read(response)
    if not response.is_success and page.alert:
        raise Refused("not_allowed", page.alert)
    if not response.is_success or not page.csrf:
        raise Unavailable(f"{url} answers {response.status_code}, not as fedsim's web does: check the address (--url)")
    return page


class Page(HTMLParser):
    """What matters of a page: the token that its forms must send back, and its message."""

    def __init__(self) -> None:
        super().__init__()
        self.csrf = ""
        self._message: list[str] = []
        self._depth = 0

    @classmethod
    def read(cls, response: httpx.Response) -> Page:
        """The page in a response; an empty one if it holds no HTML."""
        page = cls()
        if response.headers.get("Content-Type", "").startswith("text/html"):
            page.feed(response.text)
        return page

    @property
    def alert(self) -> str:
        """The message, in one line."""
        return " ".join(" ".join(self._message).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        given = dict(attrs)
        if tag == "input":
            if given.get("name") == "csrf":
                self.csrf = given.get("value") or ""
        elif tag not in VOID and (self._depth or _is_message(given)):
            self._depth += 1

    def handle_endtag(self, tag: str) -> None:
        """Called by the parser."""
        if self._depth and tag not in VOID:
            self._depth -= 1

    def handle_data(self, data: str) -> None:
        """Called by the parser."""
        if self._depth:
            self._message.append(data)


def _is_message(attributes: dict[str, str | None]) -> bool:
    """Whether an element is what the page has to say: a form's alert, or an error page's text."""
    return attributes.get("role") == "alert" or "error" in (attributes.get("class") or "").split()
