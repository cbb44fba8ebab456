"""The table of OWASP ASVS and the threat model name every requirement and only tests, files and settings that exist."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from pydantic import BaseModel

from fedsim.config import ClientConfig, ReceiverConfig, ServerConfig, WebConfig

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "reference" / "asvs.md"
THREATS = ROOT / "docs" / "explanation" / "threat-model.md"
PAGES = pytest.mark.parametrize("page", [TABLE, THREATS], ids=lambda page: page.stem)
ANSWERS = ("Met", "Not applicable", "Not met")
MOST_WORDS = 6
ACTORS = ("user", "node", "server", "stranger", "control machine")

# ASVS 5.0.0: section -> the number of its requirements of levels 1 and 2, which are the first ones of each section.
REQUIREMENTS: Final = {
    "1.1": 2, "1.2": 9, "1.3": 11, "1.4": 3, "1.5": 2,
    "2.1": 3, "2.2": 3, "2.3": 4, "2.4": 1,
    "3.2": 2, "3.3": 4, "3.4": 6, "3.5": 5, "3.7": 2,
    "4.1": 3, "4.2": 1, "4.3": 2, "4.4": 4,
    "5.1": 1, "5.2": 3, "5.3": 2, "5.4": 3,
    "6.1": 3, "6.2": 12, "6.3": 4, "6.4": 4, "6.5": 5, "6.6": 3, "6.8": 4,
    "7.1": 3, "7.2": 4, "7.3": 2, "7.4": 5, "7.5": 2, "7.6": 2,
    "8.1": 2, "8.2": 3, "8.3": 1, "8.4": 1,
    "9.1": 3, "9.2": 4,
    "10.1": 2, "10.2": 2, "10.3": 4, "10.4": 11, "10.5": 5, "10.6": 2, "10.7": 3,
    "11.1": 2, "11.2": 3, "11.3": 3, "11.4": 4, "11.5": 1, "11.6": 1,
    "12.1": 3, "12.2": 2, "12.3": 4,
    "13.1": 1, "13.2": 5, "13.3": 2, "13.4": 5,
    "14.1": 2, "14.2": 4, "14.3": 3,
    "15.1": 3, "15.2": 3, "15.3": 7,
    "16.1": 1, "16.2": 5, "16.3": 4, "16.4": 3, "16.5": 3,
    "17.1": 1, "17.2": 4, "17.3": 2,
}  # fmt: skip
CONFIGS: Final[dict[str, type[BaseModel]]] = {
    "client": ClientConfig,
    "receiver": ReceiverConfig,
    "server": ServerConfig,
    "web": WebConfig,
}


def rows() -> list[tuple[str, str, str]]:
    """Number, subject and answer of each requirement on the page."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if re.match(r"\| V\d", line)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == 3 for row in cells)
    return [(number, subject, answer) for number, subject, answer in cells]


@cache
def defined_in(path: Path) -> frozenset[str]:
    """The names of the tests in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_requirement_is_there_once_in_order() -> None:
    expected = [f"V{section}.{number + 1}" for section, count in REQUIREMENTS.items() for number in range(count)]
    assert len(expected) == 253
    assert [number for number, _, _ in rows()] == expected


def test_every_answer_says_what_meets_it_or_why_not() -> None:
    for number, subject, answer in rows():
        assert 1 <= len(subject.split()) <= MOST_WORDS, (number, subject)
        verdict = next((verdict for verdict in reversed(ANSWERS) if answer.startswith(verdict)), None)
        assert verdict, (number, answer)
        reason = answer.removeprefix(verdict).lstrip(": ")
        assert len(reason) > 10, (number, answer)
        if verdict == "Met":
            assert "`" in reason or "](" in reason or number in PLAIN, (number, "names nothing that shows it")


# Met because something is not there at all, or by libraries: no one place shows it.
PLAIN: Final = ("V1.2.9", "V6.4.2", "V11.2.1", "V11.3.2")


def test_the_page_counts_its_own_answers() -> None:
    counted = Counter(next(one for one in reversed(ANSWERS) if answer.startswith(one)) for _, _, answer in rows())
    stated = re.search(
        r"\*\*(\d+)\*\* are met, \*\*(\d+)\*\* do not apply, \*\*(\d+)\*\* are not met",
        TABLE.read_text(encoding="utf-8"),
    )
    assert stated
    assert [int(one) for one in stated.groups()] == [counted[one] for one in ANSWERS]


@PAGES
def test_every_test_that_is_named_exists(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/.-]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    assert len(named) > 20
    missing = [f"{path}::{test}" for path, test in named if test not in defined_in(ROOT / path)]
    assert not missing


@PAGES
def test_every_file_and_setting_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tops = "|".join(sorted(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")))
    files = re.findall(rf"`((?:{tops})/[\w/.-]+)`", text) + re.findall(r"`(\w+\.(?:md|txt|toml))`", text)
    assert not [path for path in files if not (ROOT / path).exists()]
    settings = re.findall(r"`(\w+)\.yml: (\w+)`", text)
    assert not [f"{file}.yml: {key}" for file, key in settings if key not in CONFIGS[file].model_fields]


def test_the_threat_model_fits_a_page_and_answers_for_each_actor() -> None:
    text = THREATS.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| **")]
    for actor, line in zip(ACTORS, lines, strict=True):
        name, can, cannot = (cell.strip() for cell in line.strip("|").split("|"))
        assert actor in name.lower()
        assert can
        assert cannot.count("::test_") >= 3, actor
    assert len(re.sub(r"`[^`]*`", "", text).split()) < 700
