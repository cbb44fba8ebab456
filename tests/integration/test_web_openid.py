"""Log-in by a provider of OpenID Connect: a real one on loopback, honest and not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import RSAKey
from openid_provider import CLIENT, SECRET, Provider, query_of, serving_provider
from pydantic import ValidationError
from web_support import PASSWORD, Browser, Site, make_site

from fedsim.config import OpenIdConfig
from fedsim.store.records import UserState
from fedsim.web import accounts

WEB = "http://127.0.0.1"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving_provider() as made:
        yield made


def site_with(provider: Provider, folder: Path, **keys: Any) -> Site:
    secret = folder / "secret"
    secret.write_text(f"{SECRET}\n")
    openid = {"issuer": provider.issuer, "client_id": CLIENT, "client_secret_file": str(secret), "web_url": WEB}
    return make_site(folder, openid={**openid, "registration": "open", "label": "University", **keys})


def begin(browser: Browser, wanted: str = "/nodes") -> httpx.Response:
    """Follow the link of the log-in page."""
    return browser.get("/login/openid", params={"next": wanted, "csrf": browser.csrf("/login")})


def log_in(browser: Browser, provider: Provider, wanted: str = "/nodes") -> httpx.Response:
    """Follow the browser to the provider and back."""
    away = begin(browser, wanted)
    assert away.status_code == 303
    assert away.headers["Location"].startswith(provider.issuer + "/authorize?")
    back = provider.authorize(query_of(away.headers["Location"]))
    return browser.get(back.removeprefix(WEB))


def test_a_person_logs_in_by_the_provider_and_is_the_same_next_time(provider: Provider, tmp_path: Path) -> None:
    site = site_with(provider, tmp_path)
    browser = site.browser()
    assert "Log in with University" in browser.get("/login").text
    answer = log_in(browser, provider)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/nodes")
    assert "lin" in browser.get("/tasks").text
    assert log_in(site.browser(), provider).status_code == 303
    (user,) = site.store.users.all()
    assert (user.name, user.state) == ("lin", UserState.ACTIVE)
    assert 'id="second-factor"' not in browser.get("/profile").text
    asked = provider.asked[0]
    assert asked["code_challenge_method"] == "S256"
    assert len({one["state"] for one in provider.asked} | {one["nonce"] for one in provider.asked}) == 4
    site.store.close()


def test_the_providers_name_takes_no_local_account_over(provider: Provider, tmp_path: Path) -> None:
    site = site_with(provider, tmp_path)
    accounts.create_admin(site.store, "lin", PASSWORD, now=site.now)
    browser = site.browser()
    assert log_in(browser, provider).status_code == 303
    assert browser.get("/admin/users").status_code == 403
    assert [user.name.partition("-")[0] for user in site.store.users.all()] == ["lin", "lin"]
    provider.person = {"sub": "another", "preferred_username": "<b>\u202e x"}
    assert log_in(site.browser(), provider).status_code == 303
    assert len(site.store.users.all()) == 3
    site.store.close()


@pytest.mark.parametrize(
    ("registration", "text"), [("approval", "is waiting for an adm"), ("closed", "Registration is closed")]
)
def test_an_administrator_decides_who_may_come(
    provider: Provider, tmp_path: Path, registration: str, text: str
) -> None:
    site = site_with(provider, tmp_path, registration=registration)
    browser = site.browser()
    for _ in range(2):
        answer = log_in(browser, provider)
        assert answer.status_code == 403
        assert text in answer.text
    assert len(site.store.users.all()) == (registration == "approval")
    assert "fedsim_session" not in browser.cookies
    site.store.close()


WRONG: dict[str, dict[str, Any]] = {
    "another nonce": {"nonce": "replayed"},
    "no nonce": {"nonce": None},
    "another audience": {"aud": "another client"},
    "another issuer": {"iss": "https://evil.example"},
    "expired": {"exp": 1_700_000_000},
    "no subject": {"sub": None},
    "not yet issued": {"nbf": 4_000_000_000},
}


def test_a_token_that_is_not_right_logs_no_one_in(provider: Provider, tmp_path: Path) -> None:
    site = site_with(provider, tmp_path)
    browser = site.browser()

    def refused(why: str) -> None:
        answer = log_in(browser, provider)
        assert answer.status_code == 403, why
        assert "did not confirm who you are" in answer.text, why
        assert "fedsim_session" not in browser.cookies, why

    for why, provider.wrong in WRONG.items():
        refused(why)
    provider.wrong, provider.unsigned = {}, True
    refused("without a signature")
    provider.unsigned, provider.signing_key = False, RSAKey.generate_key(2048, {"kid": "one"})
    refused("signed by another key")
    provider.signing_key = None
    assert site.store.users.all() == []
    assert log_in(browser, provider).status_code == 303
    site.store.close()


def test_a_callback_belongs_to_the_browser_that_began_and_serves_once(provider: Provider, tmp_path: Path) -> None:
    site = site_with(provider, tmp_path)
    begun, other = site.browser(), site.browser()
    back = provider.authorize(query_of(begin(begun).headers["Location"])).removeprefix(WEB)
    assert other.get(back).status_code == 403, "another browser"
    assert begun.get(back.replace("state=", "state=x")).status_code == 403, "another state"
    assert begun.get(back).status_code == 403, "the attempt has ended"
    for forged in ("", "a", "a.b.c", "a.b.c.!!!", "é.b.c.d", "..."):
        other.cookies.set("fedsim_openid", forged.encode("ascii", "replace").decode(), domain="127.0.0.1", path="/")
        assert other.get("/login/openid/callback?code=x&state=").status_code == 403
    away = begin(begun, "https://evil.example")
    back = provider.authorize(query_of(away.headers["Location"])).removeprefix(WEB)
    assert begun.get(back).headers["Location"] == "/tasks"
    again = site.browser()
    again.cookies.update(begun.cookies)
    assert again.get(back).status_code == 403, "a code serves once"
    site.store.close()


def test_a_link_of_another_site_only_shows_the_log_in_page(provider: Provider, tmp_path: Path) -> None:
    site = site_with(provider, tmp_path)
    browser, other = site.browser(), site.browser()
    for token in ("", "x", other.csrf("/login")):
        answer = browser.get("/login/openid", params={"next": "/nodes", "csrf": token})
        assert answer.status_code == 200
        assert "Log in with University" in answer.text
    assert provider.asked == []
    assert log_in(browser, provider).headers["Location"] == "/nodes"
    site.store.close()


def test_the_provider_must_confirm_the_strength_that_is_configured(provider: Provider, tmp_path: Path) -> None:
    site = site_with(provider, tmp_path, acr_values=["urn:two", "urn:three"])
    for acr in (None, "urn:one"):
        provider.person["acr"] = acr
        browser = site.browser()
        answer = log_in(browser, provider)
        assert answer.status_code == 403
        assert "did not confirm who you are" in answer.text
        assert "fedsim_session" not in browser.cookies
    assert provider.asked[0]["acr_values"] == "urn:two urn:three"
    provider.person["acr"] = "urn:three"
    assert log_in(site.browser(), provider).status_code == 303
    site.store.close()


def test_a_user_of_the_provider_has_no_password_that_could_be_reset(provider: Provider, tmp_path: Path) -> None:
    site = site_with(provider, tmp_path)
    browser, admin = site.browser(), site.admin()
    log_in(browser, provider)
    lin = site.store.users.by_name("lin")
    assert lin is not None
    assert f"/admin/users/{lin.id}/reset-password" not in admin.get("/admin/users").text
    answer = admin.post_form("/admin/users", f"/admin/users/{lin.id}/reset-password")
    assert answer.status_code == 422
    assert "has no password here" in answer.text
    assert browser.get("/tasks").status_code == 200
    site.store.close()


def test_a_provider_that_does_not_answer_is_a_sentence(provider: Provider, tmp_path: Path) -> None:
    site = site_with(provider, tmp_path)
    provider.answers = False
    answer = begin(site.browser())
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "does not answer" in answer.text
    site.store.close()


def test_without_a_provider_there_is_no_such_page(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    assert site.browser().get("/login/openid").status_code == 404
    assert site.browser().get("/login/openid/callback?code=a&state=b").status_code == 404
    assert "/login/openid" not in site.browser().get("/login").text
    site.store.close()


def test_a_provider_on_the_network_is_reached_by_https_only() -> None:
    keys = {"client_id": CLIENT, "client_secret_file": "/x", "web_url": "https://lab.example"}
    OpenIdConfig.model_validate({**keys, "issuer": "https://id.example"})
    with pytest.raises(ValidationError, match="must begin with https"):
        OpenIdConfig.model_validate({**keys, "issuer": "http://id.example"})
