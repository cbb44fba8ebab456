"""Every text in English and Chinese: catalogues, the choice of a language, and numbers as people read them.

The English text is the key; `locale/*/LC_MESSAGES/fedsim.po` holds the translations. They are compiled in memory when
the application starts, so a fresh clone needs no build step. A text that is made far from a request – an error, a
field's help – is a `Text`: it waits until somebody's language is known.
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

LOCALE = Path(__file__).parent / "locale"
# language -> its own name; the first is the language of the texts in the code
LANGUAGES = {"en": "English", "zh_CN": "中文"}
DEFAULT_LANGUAGE = "en"
# What browsers ask for -> ours. Every kind of Chinese is better served by ours than by English.
_ALIASES = {"zh": "zh_CN", "en": "en"}


@dataclass(frozen=True)
class Text:
    """A text that is not yet in a language: its English key and the values to fill in."""

    msgid: str
    values: dict[str, Any]

    def to(self, translations: NullTranslations) -> str:
        """The text in the language of `translations`; values that are texts themselves are translated as well."""
        values = {
            key: value.to(translations) if isinstance(value, Text) else value for key, value in self.values.items()
        }
        text = translations.gettext(self.msgid)
        return text % values if values else text  # a text without values, as a plug-in's label, may have a percent sign

    def __str__(self) -> str:
        """The English text, for logs."""
        return self.to(NullTranslations())


def tr(msgid: str, /, **values: Any) -> Text:
    """Mark a text for translation; it is translated when it is shown."""
    return Text(msgid, values)


@cache
def translations_of(language: str) -> NullTranslations:
    """The catalogue of a language, compiled from its .po file; English needs none."""
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
    """The language that a person chose, or else the best that the browser's `Accept-Language` asks for."""
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
    # A tag of a region that we do not have ("en_GB", "zh_TW", "zh_Hans_CN") falls back to its language.
    candidates = [name for tag in asked for name in (tag, tag.split("_")[0])]
    return negotiate_locale(candidates, list(LANGUAGES), aliases=_ALIASES) or DEFAULT_LANGUAGE


def html_language(language: str) -> str:
    """The language as the `lang` attribute and `Content-Language` write it: zh_CN -> zh-CN."""
    return language.replace("_", "-")


def duration(seconds: float) -> Text:
    """A length of time, in the two largest units that matter."""
    if seconds < 1:
        return tr("%(milliseconds)s ms", milliseconds=round(seconds * 1000))
    if seconds < 10:
        return tr("%(seconds)s s", seconds=f"{seconds:.1f}")
    whole = round(seconds)
    if whole < 60:
        return tr("%(seconds)s s", seconds=whole)
    if whole < 3600:
        return tr("%(minutes)s min %(seconds)s s", minutes=whole // 60, seconds=whole % 60)
    if whole < 86_400:
        return tr("%(hours)s h %(minutes)s min", hours=whole // 3600, minutes=whole % 3600 // 60)
    return tr("%(days)s d %(hours)s h", days=whole // 86_400, hours=whole % 86_400 // 3600)


def size(num_bytes: int) -> str:
    """A number of bytes in decimal units, as file managers show it."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def percent(share: float | None) -> str:
    """A share as a percentage; a dash where there is none."""
    return "–" if share is None or not math.isfinite(share) else f"{share * 100:.2f} %"


def number(value: float | None, digits: int = 4) -> str:
    """A measured number; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
