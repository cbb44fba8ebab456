"""Renders HTML with one Jinja environment per language; all values are escaped unless a template says otherwise."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fedsim import __version__
from fedsim.store.records import User, UserState
from fedsim.web import i18n
from fedsim.web.views import estimate_text, event_text, figure_text, metric_label, metric_value, phase_text

HERE = Path(__file__).parent
STATIC = HERE / "static"


class ShownRequest(Protocol):
    """What every page needs to know of its request."""

    @property
    def user(self) -> User | None:
        """Who sees the page, if they have logged in."""

    @property
    def language(self) -> str:
        """The language of the page."""

    @property
    def csrf_token(self) -> str:
        """The token that a form of the page must send back."""

    now: float


class Renderer:
    """Renders templates in the user's language."""

    def __init__(self) -> None:
        self._versions = {
            path.relative_to(STATIC).as_posix(): blake2b(path.read_bytes(), digest_size=6).hexdigest()
            for path in STATIC.rglob("*")
            if path.is_file()
        }
        self._environments = {language: self._environment(language) for language in i18n.LANGUAGES}

    def _environment(self, language: str) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.i18n"],
        )
        translations = i18n.translations_of(language)
        environment.install_gettext_translations(translations, newstyle=True)  # type: ignore[attr-defined]
        environment.globals.update(
            static=self.static_url,
            languages=i18n.LANGUAGES,
            version=__version__,
            UserState=UserState,
            metric_label=metric_label,
            metric_value=metric_value,
            estimate_text=estimate_text,
            phase_text=phase_text,
            figure_text=figure_text,
            event_text=event_text,
        )
        environment.filters.update(
            text=lambda value: value.to(translations) if isinstance(value, i18n.Text) else value,
            duration=lambda value: i18n.duration(value).to(translations),
            size=i18n.size,
            percent=i18n.percent,
            number=i18n.number,
            when=_when,
            present=lambda values: {name: value for name, value in values.items() if value is not None},
        )
        return environment

    def static_url(self, name: str) -> str:
        """The URL of a static file with the digest of its content, so that it can be cached indefinitely."""
        return f"/static/{name}?v={self._versions[name]}"

    def page(self, request: ShownRequest, template: str, **values: Any) -> str:
        """Render a template; the request, its user and its form token are available in every template."""
        return (
            self._environments[request.language]
            .get_template(template)
            .render(
                request=request,
                user=request.user,
                language=request.language,
                html_language=i18n.html_language(request.language),
                now=request.now,
                **values,
            )
        )


def _when(seconds: float | None) -> Markup:
    """A time, shown in UTC; with JavaScript in the user's time zone."""
    if seconds is None or not math.isfinite(seconds):
        return Markup("–")
    moment = datetime.fromtimestamp(seconds, UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        moment.isoformat(timespec="seconds"), moment.strftime("%Y-%m-%d %H:%M UTC")
    )
