"""Reads pages of the web as far as commands need them: the token of a form, and the message."""

from __future__ import annotations

from html.parser import HTMLParser

import httpx

from fedsim.errors import Refused, Unavailable

VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


def read_page(url: str, http: httpx.Client, path: str) -> Page:
    """Fetch a page of the web at `url` with the session of `http`.

    Raises:
        Refused: the web refuses the request.
        Unavailable: it is not a page of fedsim's web.
    """
    response = http.get(f"{url}{path}")
    page = Page.read(response)
    if not response.is_success and page.alert:
        raise Refused("not_allowed", page.alert)
    if not response.is_success or not page.csrf:
        raise Unavailable(f"{url} answers {response.status_code}, unlike fedsim's web: check the address (--url)")
    return page


class Page(HTMLParser):
    """A parsed page: the token of its forms, its hidden fields, and its message."""

    def __init__(self) -> None:
        super().__init__()
        self.csrf = ""
        self.hidden: dict[str, str] = {}
        self._message: list[str] = []
        self._depth = 0

    @classmethod
    def read(cls, response: httpx.Response) -> Page:
        """Parse the page in a response; it is empty if the response is not HTML."""
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
            if given.get("type") == "hidden":
                self.hidden[given.get("name") or ""] = given.get("value") or ""
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
    """Whether an element is the page's message: the alert of a form, or the text of an error page."""
    return attributes.get("role") == "alert" or "error" in (attributes.get("class") or "").split()
