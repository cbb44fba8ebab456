"""The application: routes, and what all responses have in common: authentication, CSRF check, errors, headers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import bottle

from fedsim.config import WebConfig
from fedsim.errors import Unavailable
from fedsim.log import get_logger
from fedsim.refusal_log import RefusalLog
from fedsim.store import Store
from fedsim.web.api import ApiRoutes
from fedsim.web.errors import Fault, status_text, status_title
from fedsim.web.i18n import Text, duration, html_language, tr
from fedsim.web.notifier import Notifier
from fedsim.web.openid import OpenIdProvider
from fedsim.web.pages.admin import AdminPages
from fedsim.web.pages.login import LoginPages
from fedsim.web.pages.nodes import NodePages
from fedsim.web.pages.profile import ProfilePages
from fedsim.web.pages.public import PublicPages
from fedsim.web.pages.submit import SubmitPages
from fedsim.web.pages.tasks import TaskPages
from fedsim.web.rendering import STATIC, Renderer
from fedsim.web.request import Site, WebRequest
from fedsim.web.request_rate import RequestRate
from fedsim.web.responses import json_response, see_other
from fedsim.web.routes import Access, Route
from fedsim.web.throttle import address_key

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOGGED_STATUSES = frozenset({400, 401, 403, 411, 413, 415, 429})
"""Of refused requests. This site's pages cause none of them unless a session has ended or its user is too quick."""
LOGGED_REFUSALS = 5
"""Lines about refused requests from one address in ten seconds."""
_REQUEST = "fedsim.request"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer, with which browsers send `Origin: null` with this site's own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def make_app(
    config: WebConfig, store: Store, notifier: Notifier, *, clock: Callable[[], float] = time.time
) -> bottle.Bottle:
    """Create the WSGI application.

    Args:
        config: the configuration from `web.yml`.
        store: an open store, which the caller closes.
        notifier: notifies the server of new tasks and stop requests.
        clock: returns seconds since the epoch.
    """
    openid = None if config.openid is None else OpenIdProvider(config.openid)
    return _Application(Site(config, store, notifier, clock, openid=openid), Renderer()).app


class _Application:
    def __init__(self, site: Site, renderer: Renderer) -> None:
        self.site = site
        self.refusals = RefusalLog(LOGGED_REFUSALS)
        self.rate = RequestRate(site.config.requests_per_minute)
        self.renderer = renderer
        self.app = bottle.Bottle()
        self.app.default_error_handler = self._from_bottle
        self.app.add_hook("after_request", self._finish)
        self.app.route("/static/<name:path>", callback=self._static)
        parts = (PublicPages, LoginPages, SubmitPages, TaskPages, NodePages, ProfilePages, AdminPages)
        routes = [route for part in parts for route in part(renderer).routes()]
        for route in (*routes, *ApiRoutes().routes()):
            self.app.route(route.path, method=route.method, callback=self._wrap(route))

    def _wrap(self, route: Route) -> Callable[..., Any]:
        def answer(**parts: Any) -> Any:
            request = self._request()
            try:
                request.authentication.identify()
                self._check_rate(request)
                changes = request.method not in SAFE_METHODS
                if changes:
                    request.check_length()
                    request.csrf.check_origin()
                stranger = route.access is not Access.ANYONE and request.user is None
                if changes and route.outdated and (stranger or not request.csrf.is_valid):
                    self._log_refusal(request, 403, "a form without the token of this session")
                    return route.outdated(request)
                if stranger:
                    return self._redirect_to_login(request)
                if changes:
                    request.csrf.check_token()
                if not route.always and (obligation := request.authentication.obligation):
                    return self._redirect_to_profile(request, obligation)
                request.authentication.check_access(admins_only=route.access is Access.ADMIN)
                result = route.handler(request, **parts)
            except Fault as fault:
                if fault.status in LOGGED_STATUSES or fault.forbidden:
                    self._log_refusal(request, fault.status, str(fault))
                return self._fault(request, fault)
            except Unavailable as error:
                get_logger().error("database_unavailable", problem=str(error))
                return self._fault(request, Fault(503, status_text(503), retry_after=5))
            if isinstance(result, dict):
                return json_response(result)
            return result

        return answer

    def _log_refusal(self, request: WebRequest, status: int, problem: str) -> None:
        """Log a request without the required permission, or that another site's page may have caused."""
        self.refusals.warning(
            address_key(request.address),
            "request_refused",
            address=request.address,
            user=request.user.name if request.user else None,
            method=request.method,
            path=request.path,
            status=status,
            problem=problem,
        )

    def _check_rate(self, request: WebRequest) -> None:
        key = address_key(request.address) if request.user is None else f"user:{request.user.id}"
        wait = self.rate.take(key, request.now)
        if wait:
            text = tr("Too many requests. Try again in %(time)s.", time=duration(wait))
            raise Fault(429, text, retry_after=wait)

    def _request(self) -> WebRequest:
        environ = bottle.request.environ
        if _REQUEST not in environ:
            environ[_REQUEST] = WebRequest(self.site, environ)
        request: WebRequest = environ[_REQUEST]
        return request

    def _redirect_to_login(self, request: WebRequest) -> bottle.HTTPResponse:
        if request.is_api:
            return self._fault(request, Fault(401, status_text(401)))
        back = quote(request.path_with_query, safe="/") if request.method == "GET" else "/tasks"
        if request.header("HX-Request"):
            response = self._fault(request, Fault(401, status_text(401)))
            response.set_header("HX-Redirect", "/login")
            return response
        return see_other(f"/login?next={back}")

    def _redirect_to_profile(self, request: WebRequest, obligation: Text) -> bottle.HTTPResponse:
        if request.is_api or request.header("HX-Request"):
            return self._fault(request, Fault(403, obligation))
        return see_other("/profile")

    def _fault(self, request: WebRequest, fault: Fault) -> bottle.HTTPResponse:
        text = request.translate(fault.text)
        problems = {field: request.translate(problem) for field, problem in fault.problems.items()}
        if request.is_api or request.path == "/healthz":
            response = json_response({"error": text, **({"problems": problems} if problems else {})}, fault.status)
            if fault.status == 401:
                response.set_header("WWW-Authenticate", 'Bearer realm="fedsim"')
        else:
            page = self.renderer.page(
                request,
                "error.html",
                status=fault.status,
                title=status_title(fault.status),
                text=text,
                problems=problems,
            )
            response = bottle.HTTPResponse(page, status=fault.status)
            if request.header("HX-Request") and fault.status in {403, 404}:
                response.set_header("HX-Refresh", "true")  # the whole page is out of date, not only its live part
        if fault.retry_after:
            response.set_header("Retry-After", str(fault.retry_after))
        return response

    def _from_bottle(self, error: bottle.HTTPError) -> Any:
        """Convert Bottle's own errors: unknown route, unsupported method, or an exception in a handler."""
        if error.status_code >= 500:
            get_logger().error("request_failed", path=bottle.request.path, exception=error.traceback or error.body)
        request = self._request()
        if request.user is None:
            request.authentication.try_to_identify()
        answer = self._fault(request, Fault(error.status_code, status_text(error.status_code)))
        answer.apply(bottle.response)
        if error.status_code == 405 and "Allow" in error.headers:
            bottle.response.set_header("Allow", error.headers["Allow"])
        self._finish()
        return answer.body

    def _static(self, name: str) -> bottle.HTTPResponse:
        response = bottle.static_file(name, str(STATIC))
        if response.status_code == 200:
            fresh = "public, max-age=31536000, immutable" if "v" in bottle.request.query else "no-cache"
            response.set_header("Cache-Control", fresh)
            if response.content_type == "image/svg+xml":
                response.content_type += "; charset=UTF-8"
        return response

    def _finish(self) -> None:
        """Set the headers of every response. For errors, Bottle calls this after the response was replaced."""
        response = bottle.response
        request = self._request()
        for name, value in HEADERS.items():
            response.set_header(name, value)
        if request.encrypted:
            response.set_header("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
        if not request.path.startswith("/static/"):
            if "Cache-Control" not in response.headers:
                response.set_header("Cache-Control", "no-store")
            response.set_header("Vary", "Accept-Language, Cookie")
            response.set_header("Content-Language", html_language(request.language))
        # Set as headers, because Bottle loses its own cookies when it applies a response a second time.
        if "Set-Cookie" in response.headers:
            del response.headers["Set-Cookie"]
        if request.may_set_cookies:
            for cookie in request.new_cookies:
                response.add_header("Set-Cookie", cookie.header(secure=request.encrypted))
