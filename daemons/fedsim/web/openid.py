"""Log-in by an OpenID Connect provider: the authorization code flow with PKCE, state and nonce (Core 1.0, section 3.1).

It needs the optional extra `openid`. The provider is only asked who a person is; what they may do is decided here.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import httpx

from fedsim.config import OpenIdConfig
from fedsim.config.secrets import find_secret
from fedsim.errors import Unavailable
from fedsim.log import get_logger
from fedsim.web.errors import Fault
from fedsim.web.i18n import tr

ATTEMPT_SECONDS: Final = 600
CALLBACK: Final = "/login/openid/callback"
_KEPT_SECONDS: Final = 3600
_TIMEOUT_SECONDS: Final = 5.0
_MOST_BYTES: Final = 256 * 1024
_MOST_AT_ONCE: Final = 2
_LEEWAY_SECONDS: Final = 60
_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_PLACES: Final = threading.BoundedSemaphore(_MOST_AT_ONCE)


@dataclass(frozen=True)
class Attempt:
    """A log-in that a browser has begun; its cookie carries it to the provider and back."""

    state: str
    nonce: str
    verifier: str
    wanted: str

    def cookie(self) -> str:
        """The value of the cookie."""
        wanted = base64.urlsafe_b64encode(self.wanted.encode()).decode().rstrip("=")
        return f"{self.state}.{self.nonce}.{self.verifier}.{wanted}"

    @classmethod
    def of_cookie(cls, value: str) -> Attempt | None:
        """The attempt that a cookie carries; None if there is none."""
        parts = value.split(".")
        if len(parts) != 4 or not all(parts[:3]):
            return None
        state, nonce, verifier, wanted = parts
        try:
            path = base64.urlsafe_b64decode(wanted + "=" * (-len(wanted) % 4)).decode()
        except (binascii.Error, ValueError):
            return None
        return cls(state, nonce, verifier, path)


@dataclass(frozen=True)
class Person:
    """Whom the provider has identified: `subject` is unique at `issuer`, `name` is only a proposal."""

    issuer: str
    subject: str
    name: str


class OpenIdProvider:
    """The configured provider. What it publishes about itself is kept for an hour. Threads share it."""

    def __init__(self, config: OpenIdConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._published: dict[str, tuple[float, dict[str, Any]]] = {}

    @property
    def _redirect_uri(self) -> str:
        return self._config.web_url.rstrip("/") + CALLBACK

    def begin(self, wanted: str) -> tuple[str, Attempt]:
        """The provider's address for a new log-in, and the attempt that the browser keeps.

        Raises:
            Fault: 503 if the provider cannot be reached.
        """
        from authlib.oauth2.rfc7636 import create_s256_code_challenge  # noqa: PLC0415 - of the optional extra

        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        attempt = Attempt(state, nonce, verifier, wanted)
        query = {
            "response_type": "code",
            "client_id": self._config.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": "openid profile",
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": create_s256_code_challenge(attempt.verifier),
            "code_challenge_method": "S256",
        }
        if self._config.acr_values:
            query["acr_values"] = " ".join(self._config.acr_values)
        with _asking():
            address = str(self._document()["authorization_endpoint"])
        return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}", attempt

    def finish(self, attempt: Attempt, code: str, now: float) -> Person:
        """Exchange the code for the identity of the person.

        Raises:
            Fault: 403 if the provider does not confirm it, 503 if it cannot be reached.
        """
        with _asking():
            document = self._document()
            answer = self._fetch(
                str(document["token_endpoint"]),
                auth=(self._config.client_id, find_secret(self._config.client_secret_file).read_text().strip()),
                form={
                    "grant_type": "authorization_code",
                    "code": code,
                    "redirect_uri": self._redirect_uri,
                    "code_verifier": attempt.verifier,
                },
            )
            claims = self._claims(str(answer.get("id_token", "")), document, attempt, now)
        name = claims.get("preferred_username") or str(claims.get("email", "")).partition("@")[0] or claims["sub"]
        return Person(self._config.issuer, str(claims["sub"]), str(name))

    def _claims(self, token: str, document: dict[str, Any], attempt: Attempt, now: float) -> dict[str, Any]:
        """The verified claims of an ID token."""
        from authlib.oidc.core import CodeIDToken  # noqa: PLC0415 - of the optional extra
        from joserfc import jwt  # noqa: PLC0415 - as above
        from joserfc.errors import JoseError  # noqa: PLC0415 - as above
        from joserfc.jwk import KeySet  # noqa: PLC0415 - as above

        try:
            keys = KeySet.import_key_set(self._kept(str(document["jwks_uri"])))  # type: ignore[arg-type] # JSON
            decoded = jwt.decode(token, keys, algorithms=list(_ALGORITHMS))
            claims = CodeIDToken(
                decoded.claims,
                decoded.header,
                {
                    "iss": {"essential": True, "value": self._config.issuer},
                    "aud": {"essential": True, "value": self._config.client_id},
                    "sub": {"essential": True},
                },
                {"client_id": self._config.client_id, "nonce": attempt.nonce},
            )
            claims.validate(now=int(now), leeway=_LEEWAY_SECONDS)
            self._check_strength(claims.get("acr"))
        except (JoseError, ValueError, KeyError, TypeError) as error:
            get_logger().warning("openid_refused", problem=f"{type(error).__name__}: {error}")
            raise Fault(403, tr("The provider did not confirm who you are. Try again.")) from error
        return dict(claims)

    def _check_strength(self, acr: object) -> None:
        wanted = self._config.acr_values
        if wanted and acr not in wanted:
            raise ValueError(f"the person was authenticated by {acr!r} (acr), not by one of {', '.join(wanted)}")

    def _document(self) -> dict[str, Any]:
        document = self._kept(self._config.issuer.rstrip("/") + "/.well-known/openid-configuration")
        if document.get("issuer") != self._config.issuer:
            raise Unavailable(f"the document of {self._config.issuer} names another issuer: {document.get('issuer')}")
        return document

    def _kept(self, url: str) -> dict[str, Any]:
        """What the provider publishes, fetched at most once an hour."""
        with self._lock:
            fetched, content = self._published.get(url, (0.0, {}))
        if not content or time.monotonic() - fetched > _KEPT_SECONDS:
            content = self._fetch(url)
            with self._lock:
                self._published[url] = (time.monotonic(), content)
        return content

    def _fetch(
        self, url: str, *, auth: tuple[str, str] | None = None, form: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """A JSON object from the provider: a GET, or a POST of a form."""
        method = "GET" if form is None else "POST"
        with (
            httpx.Client(timeout=_TIMEOUT_SECONDS, follow_redirects=False) as client,
            client.stream(method, url, data=form, auth=auth, headers={"Accept": "application/json"}) as answer,
        ):
            content = b""
            for block in answer.iter_bytes():
                content += block
                if len(content) > _MOST_BYTES:
                    raise Unavailable(f"{url} answers with more than {_MOST_BYTES} bytes")
        if answer.status_code in {400, 401, 403} and form is not None:
            get_logger().warning("openid_refused", problem=f"{url} answers {answer.status_code}")
            raise Fault(403, tr("The provider did not confirm who you are. Try again."))
        if answer.status_code != httpx.codes.OK:
            raise Unavailable(f"{url} answers {answer.status_code}")
        found = httpx.Response(200, content=content).json()
        if not isinstance(found, dict):
            raise Unavailable(f"{url} does not answer with a JSON object")
        return found


@contextmanager
def _asking() -> Iterator[None]:
    """Bound the threads that wait for the provider, and turn its failures into a sentence for the user."""
    if not _PLACES.acquire(blocking=False):
        raise _unanswered()
    try:
        yield
    except Fault:
        raise
    except (httpx.HTTPError, httpx.InvalidURL, Unavailable, OSError, KeyError, ValueError) as error:
        get_logger().error("openid_unavailable", problem=f"{type(error).__name__}: {error}")
        raise _unanswered() from error
    finally:
        _PLACES.release()


def _unanswered() -> Fault:
    return Fault(503, tr("The log-in provider does not answer. Try again shortly."), retry_after=5)
