"""Sphinx extension: parts generated from the code, paths in the repository, and a check of every link.

- `{generated} NAME [ARGUMENT]` inserts what `generate.GENERATORS[NAME]` returns.
- `{repo}` marks a path in the repository; a path that does not exist is an error.
- After the build every link of the pages is checked: inside the documentation its target and anchor must exist, outside
  its syntax must be right.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from docutils import nodes
from generate import GENERATORS
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.logging import getLogger

ROOT = Path(__file__).parents[2]
log = getLogger(__name__)


class Generated(SphinxDirective):
    """Markdown that is generated from the code."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The parsed Markdown."""
        name, *arguments = self.arguments
        return self.parse_text_to_nodes(GENERATORS[name](*arguments), allow_section_headings=True)


class RepositoryPath(SphinxRole):
    """A path in the repository."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The path as a literal."""
        if not (ROOT / self.text.rstrip("/")).exists():
            log.warning("there is no %s in the repository", self.text, location=self.get_location())
        return [nodes.literal(self.rawtext, self.text, classes=["file"])], []


class _Page(HTMLParser):
    """The anchors and the targets of one page."""

    TARGETS: ClassVar[dict[str, str]] = {"a": "href", "img": "src", "link": "href", "script": "src", "source": "srcset"}

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect."""
        for name, value in attrs:
            if name in {"id", "name"} and value:
                self.anchors.add(value)
            if name == self.TARGETS.get(tag) and value:
                self.targets.append(value)


def check_links(app: Sphinx, exception: Exception | None) -> None:
    """Check every link of the HTML pages."""
    if exception is not None or app.builder.name != "html":
        return
    folder = Path(app.outdir)
    pages = {path: _Page(path) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        for target in page.targets:
            if problem := _problem(target, path, pages):
                log.warning("%s: the link %s %s", path.relative_to(folder), target, problem)


def _problem(target: str, path: Path, pages: dict[Path, _Page]) -> str | None:
    parts = urlsplit(target)
    if parts.scheme or target.startswith("//"):
        whole = parts.scheme in {"data", "mailto"} or (parts.scheme in {"http", "https"} and "." in parts.netloc)
        return None if whole or parts.hostname in {"localhost", "server"} else "is no address"
    there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    there = there / "index.html" if there.is_dir() else there
    if not there.exists():
        return "leads to a page that does not exist"
    if parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].anchors:
        return "leads to an anchor that does not exist"
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.add_directive("generated", Generated)
    app.add_role("repo", RepositoryPath())
    app.connect("build-finished", check_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
