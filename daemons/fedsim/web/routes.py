"""What a page or an API question is to the application: a method, a path, a function, and who may ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import bottle

from fedsim.web.request import WebRequest


class Access(Enum):
    """Who may ask."""

    ANYONE = auto()
    USER = auto()
    ADMIN = auto()


@dataclass(frozen=True)
class Route:
    """One question that the site answers. The handler gets the `WebRequest` and the path's parts.

    `outdated` answers, instead of the handler, a form whose session has ended or whose token is an older one's: it
    shows again what was typed, and does nothing. Without one, the form is refused.
    """

    method: str
    path: str
    handler: Callable[..., str | dict[str, Any] | bottle.HTTPResponse]
    access: Access = Access.USER
    outdated: Callable[[WebRequest], bottle.HTTPResponse] | None = None
