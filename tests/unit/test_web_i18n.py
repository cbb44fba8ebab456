"""Every text in both languages, and the choice between them."""

from __future__ import annotations

import re
from gettext import NullTranslations
from pathlib import Path

import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po

import fedsim.web
from fedsim.web import i18n
from fedsim.web.i18n import choose_language, duration, percent, size, tr, translations_of

WEB = Path(fedsim.web.__file__).parent
METHODS = [("**.py", "python"), ("templates/**.html", "jinja2.ext:babel_extract")]
PLACEHOLDER = re.compile(r"%\((\w+)\)s")


@pytest.fixture(scope="module")
def used() -> set[str]:
    keywords = {"tr": None, "_": None, "gettext": None, "gettext_noop": None}
    folders = (WEB, WEB.parent / "learning", WEB.parent / "owner")
    places = [(folder, METHODS) for folder in folders] + [(WEB.parent, [("problems.py", "python")])]
    return {
        str(found[2])
        for folder, methods in places
        for found in extract_from_dir(str(folder), method_map=methods, keywords=keywords)
    }


@pytest.fixture(scope="module")
def chinese() -> dict[str, str]:
    with (i18n.LOCALE / "zh_CN" / "LC_MESSAGES" / "fedsim.po").open("rb") as file:
        return {str(message.id): str(message.string) for message in read_po(file, locale="zh_CN") if message.id}


def test_every_text_of_the_pages_has_a_chinese_translation(used: set[str], chinese: dict[str, str]) -> None:
    assert len(used) > 200, "the extraction found too little to prove anything"
    missing = sorted(text for text in used if not chinese.get(text))
    assert not missing, "add these to locale/zh_CN/LC_MESSAGES/fedsim.po"


def test_no_translation_is_left_of_a_text_that_is_gone(used: set[str], chinese: dict[str, str]) -> None:
    assert sorted(chinese.keys() - used) == []


def test_a_translation_fills_in_the_same_values(chinese: dict[str, str]) -> None:
    different = [text for text in chinese if set(PLACEHOLDER.findall(text)) != set(PLACEHOLDER.findall(chinese[text]))]
    assert different == []


def test_translations_are_chinese_where_the_english_is_a_sentence(chinese: dict[str, str]) -> None:
    untranslated = [text for text, said in chinese.items() if " " in text and not re.search(r"[一-鿿]", said)]
    assert set(untranslated) == {"GPU (CUDA)", "ROC AUC", "%(model)s on %(dataset)s", "%(missing)s of %(cohort)s"}


@pytest.mark.parametrize(
    ("wanted", "header", "language"),
    [
        (None, "", "en"),
        (None, "zh", "zh_CN"),
        (None, "zh-TW,zh;q=0.9", "zh_CN"),
        (None, "zh-Hans-CN", "zh_CN"),
        (None, "de-DE,de;q=0.9,zh-CN;q=0.8,en;q=0.7", "zh_CN"),
        (None, "en-GB,en;q=0.9,zh;q=0.8", "en"),
        (None, "zh;q=0.1,en;q=0.9", "en"),
        (None, "zh;q=0,en;q=0.2", "en"),
        (None, "fr", "en"),
        (None, ";;;,q=x,*,zh;q=what", "en"),
        ("en", "zh-CN", "en"),
        ("zh_CN", "en", "zh_CN"),
        ("xx", "zh-CN", "zh_CN"),
    ],
)
def test_the_language_is_the_persons_choice_or_else_the_browsers(
    wanted: str | None, header: str, language: str
) -> None:
    assert choose_language(wanted, header) == language


def test_a_text_within_a_text_is_translated_too() -> None:
    text = tr("about %(time)s left", time=duration(75))
    assert str(text) == "about 1 min 15 s left"
    assert text.to(translations_of("zh_CN")) == "预计还需 1 分 15 秒"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0213, "21 ms"),
        (6.12, "6.1 s"),
        (59.4, "59 s"),
        (3599.2, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_a_length_of_time_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds).to(NullTranslations()) == text


def test_numbers_read_well() -> None:
    assert [size(n) for n in (0, 999, 1000, 796_840, 3 * 10**9, 10**15)] == [
        "0 B", "999 B", "1.0 kB", "796.8 kB", "3.0 GB", "1000.0 TB",
    ]  # fmt: skip
    assert [percent(share) for share in (0.7812, 1.0, None, float("nan"))] == ["78.12 %", "100.00 %", "–", "–"]
