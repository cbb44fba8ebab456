"""Answers that are no page: JSON, and the way to another page."""

from __future__ import annotations

import json
from typing import Any

import bottle

from fedsim.web.errors import Fault


def json_response(content: dict[str, Any], status: int = 200) -> bottle.HTTPResponse:
    """A JSON object; NaN and infinity, which JSON does not have, would be a fault of ours."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    # Half a surrogate pair, which UTF-8 lacks, becomes the escape that JSON has for it.
    return bottle.HTTPResponse(
        text.encode(errors="backslashreplace"), status=status, headers={"Content-Type": "application/json"}
    )


def page_response(page: str, fault: Fault | None = None) -> bottle.HTTPResponse:
    """A page that shows by itself what was wrong, if anything was."""
    response = bottle.HTTPResponse(page, status=fault.status if fault else 200)
    if fault and fault.retry_after:
        response.set_header("Retry-After", str(fault.retry_after))
    return response


def see_other(location: str) -> bottle.HTTPResponse:
    """After a form was taken: go and look there. The path is relative, so no host header is believed."""
    return bottle.HTTPResponse(status=303, headers={"Location": location, "Cache-Control": "no-store"})


def safe_next(path: str) -> str:
    """A page of this site to go to after log-in; anything else becomes the list of tasks."""
    inside = path.startswith("/") and not path.startswith("//") and path.isprintable() and "\\" not in path
    return path if inside and path.isascii() else "/tasks"
