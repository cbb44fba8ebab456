"""Routes of pages and API: method, path, handler and required access."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import bottle

from fedsim.web.openapi import Contract
from fedsim.web.request import WebRequest


class Access(Enum):
    """Who may send a request."""

    ANYONE = auto()
    USER = auto()
    ADMIN = auto()


@dataclass(frozen=True)
class Route:
    """A route. The handler is called with the `WebRequest` and the variable parts of the path.

    `always`: also for users who must first change their password or set up a second factor.
    `contract`: of a route of the JSON API, for its OpenAPI document.
    `outdated` is called instead of the handler if the session of a form has ended or its token belongs to an older
    session: it shows the input again and has no effect. Without it, such a form is refused.
    """

    method: str
    path: str
    handler: Callable[..., str | dict[str, Any] | bottle.HTTPResponse]
    access: Access = Access.USER
    outdated: Callable[[WebRequest], bottle.HTTPResponse] | None = None
    always: bool = False
    contract: Contract | None = None
