"""Internationalisation in English and Chinese: translations, choice of the language, and formatting of numbers.

The English text is the key; `locale/*/LC_MESSAGES/fedsim.po` holds the translations. They are compiled in memory when
the application starts, so a fresh clone needs no build step. A text that is created without a request, such as an error
or a field's help, is a `Text`: it is translated when the user's language is known.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cache
from gettext import GNUTranslations, NullTranslations
from pathlib import Path
from typing import Any

from babel.core import negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from fedsim.durations import DAY_SECONDS

LOCALE = Path(__file__).parent / "locale"
# language -> its own name; the first is the language of the texts in the code
LANGUAGES = {"en": "English", "zh_CN": "中文"}
DEFAULT_LANGUAGE = "en"
# Language tag of browsers -> ours. For all variants of Chinese, ours is better than English.
_ALIASES = {"zh": "zh_CN", "en": "en"}


@dataclass(frozen=True)
class Text:
    """A text that is not yet translated: its English key and the values to fill in."""

    msgid: str
    values: dict[str, Any]

    def to(self, translations: NullTranslations) -> str:
        """Translate the text and any values that are texts themselves."""
        values = {
            key: value.to(translations) if isinstance(value, Text) else value for key, value in self.values.items()
        }
        text = translations.gettext(self.msgid)
        # Without values there is nothing to format, and a percent sign, as in a plug-in's label, needs no escape.
        return text % values if values else text

    def __str__(self) -> str:
        """The English text, for logs."""
        return self.to(NullTranslations())


def tr(msgid: str, /, **values: Any) -> Text:
    """Mark a text for translation, which happens when it is displayed."""
    return Text(msgid, values)


@cache
def translations_of(language: str) -> NullTranslations:
    """The translations of a language, compiled from its .po file; English needs none."""
    path = LOCALE / language / "LC_MESSAGES" / "fedsim.po"
    if language == DEFAULT_LANGUAGE:
        return NullTranslations()
    with path.open("rb") as file:
        catalogue = read_po(file, locale=language)
    compiled = io.BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    return GNUTranslations(compiled)


def choose_language(wanted: str | None, accept_language: str) -> str:
    """The language that the user chose, or else the best match of the browser's `Accept-Language`."""
    if wanted in LANGUAGES:
        return wanted
    weighted: list[tuple[float, int, str]] = []
    for position, part in enumerate(accept_language.split(",")[:20]):
        tag, _, parameters = part.strip().partition(";")
        try:
            weight = float(parameters.partition("q=")[2] or 1)
        except ValueError:
            continue
        if tag and tag != "*" and weight > 0:
            weighted.append((-weight, position, tag.replace("-", "_")))
    asked = [tag for *_, tag in sorted(weighted)]
    # An unknown regional tag ("en_GB", "zh_TW", "zh_Hans_CN") falls back to its language.
    candidates = [name for tag in asked for name in (tag, tag.split("_")[0])]
    return negotiate_locale(candidates, list(LANGUAGES), aliases=_ALIASES) or DEFAULT_LANGUAGE


def html_language(language: str) -> str:
    """The language in the format of the `lang` attribute and `Content-Language`: zh_CN -> zh-CN."""
    return language.replace("_", "-")


def duration(seconds: float) -> Text:
    """A duration in its two largest units."""
    if seconds < 1:
        return tr("%(milliseconds)s ms", milliseconds=round(seconds * 1000))
    if seconds < 10:
        return tr("%(seconds)s s", seconds=f"{seconds:.1f}")
    whole = round(seconds)
    if whole < 60:
        return tr("%(seconds)s s", seconds=whole)
    if whole < 3600:
        return tr("%(minutes)s min %(seconds)s s", minutes=whole // 60, seconds=whole % 60)
    if whole < DAY_SECONDS:
        return tr("%(hours)s h %(minutes)s min", hours=whole // 3600, minutes=whole % 3600 // 60)
    return tr("%(days)s d %(hours)s h", days=whole // DAY_SECONDS, hours=whole % DAY_SECONDS // 3600)


def size(num_bytes: int) -> str:
    """A number of bytes in decimal units."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def percent(share: float | None) -> str:
    """A share as a percentage; a dash for None."""
    return "–" if share is None or not math.isfinite(share) else f"{share * 100:.2f} %"


def number(value: float | None, digits: int = 4) -> str:
    """A measured number; a dash for None."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
