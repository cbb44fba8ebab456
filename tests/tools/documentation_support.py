"""What tests of the documentation share: its pages, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *PAGES))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """The code blocks of README and pages in a language."""
    return [content for name, content in BLOCK.findall(TEXT) if name == language]


def named(language: str, name: str) -> list[str]:
    """Those whose first line is a comment with this name."""
    return [content for content in blocks(language) if content.startswith(f"# {name}\n")]
