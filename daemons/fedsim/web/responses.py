"""Responses: JSON, pages with an error status, and redirects."""

from __future__ import annotations

import json
from typing import Any

import bottle

from fedsim.web.errors import Fault


def json_response(content: dict[str, Any], status: int = 200) -> bottle.HTTPResponse:
    """A JSON object. NaN and infinity, which JSON does not have, raise ValueError."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    # A lone surrogate cannot be encoded as UTF-8; it is written as a JSON escape.
    return bottle.HTTPResponse(
        text.encode(errors="backslashreplace"), status=status, headers={"Content-Type": "application/json"}
    )


def page_response(page: str, fault: Fault | None = None) -> bottle.HTTPResponse:
    """A page that itself shows the fault, if there is one."""
    response = bottle.HTTPResponse(page, status=fault.status if fault else 200)
    if fault and fault.retry_after:
        response.set_header("Retry-After", str(fault.retry_after))
    return response


def see_other(location: str) -> bottle.HTTPResponse:
    """Redirect after a form was accepted. The path is relative, so the Host header is not used."""
    return bottle.HTTPResponse(status=303, headers={"Location": location, "Cache-Control": "no-store"})


def safe_next(path: str) -> str:
    """The path if it is a page of this site, otherwise the list of tasks."""
    inside = path.startswith("/") and not path.startswith("//") and path.isprintable() and "\\" not in path
    return path if inside and path.isascii() else "/tasks"
