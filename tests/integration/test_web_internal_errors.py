"""An unexpected exception in the handler of a request ends this request alone, whichever handler it is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from web_support import make_site

from fedsim.web import app
from fedsim.web.routes import Route


def test_an_exception_in_any_handler_ends_its_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers: list[Route] = []
    raised: set[tuple[str, str]] = set()
    armed: list[bool] = []

    def with_a_fault(self: Any, route: Route) -> Any:
        def broken(*arguments: Any, **parts: Any) -> Any:
            if not armed:
                return route.handler(*arguments, **parts)
            if (route.method, route.path) in raised:
                return "answered"
            raised.add((route.method, route.path))
            raise ZeroDivisionError(f"injected into {route.method} {route.path}")

        handlers.append(route)
        return wrap(self, replace(route, handler=broken))

    wrap = app._Application._wrap
    monkeypatch.setattr(app._Application, "_wrap", with_a_fault)
    site = make_site(tmp_path, requests_per_minute=10_000)
    try:
        root = site.admin()
        token = root.csrf("/profile")
        armed.append(True)
        for route in handlers:
            path = re.sub(r"<[^>]*0-9a-f[^>]*>", "0" * 64, route.path)
            path = re.sub(r"<[^>]+>", "1", path)
            for expected in (500, 200):
                form = {} if path.startswith("/api/") or route.method == "GET" else {"data": {"csrf": token}}
                answer = root.request(route.method, path, headers={"X-CSRF-Token": token}, **form)
                assert (route.method, path, answer.status_code) == (route.method, path, expected)
                assert "ZeroDivisionError" not in answer.text
        assert raised == {(route.method, route.path) for route in handlers}
        logged = capfd.readouterr().err
        for method, path in raised:
            assert f"injected into {method} {path}" in logged
    finally:
        site.store.close()
