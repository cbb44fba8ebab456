"""The second factor: set up with a code, asked for at log-in, each code once. Tokens that expire, logged refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import httpx
import pytest
from cli_support import Terminal, serving
from web_support import PASSWORD, Browser, Site, make_site

from fedsim.store.records import UserState
from fedsim.web import second_factor
from fedsim.web.second_factor import STEP_SECONDS


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path)
    yield made
    made.store.close()


def code_of(secret: str, now: float) -> str:
    """The code that an authenticator app shows."""
    return second_factor._totp(secret).generate(int(now)).decode()


def set_up(site: Site, browser: Browser) -> str:
    """Set up a second factor in this browser; returns its secret."""
    page = browser.post_form("/profile", "/profile/second-factor").text
    found = re.search(r'id="totp-secret">([A-Z2-7]+)<', page)
    assert found
    assert "<svg" in page
    assert f"secret={found[1]}" in unescape(page), "an app on this device opens the address"
    fields = {"secret": found[1], "present": PASSWORD, "code": code_of(found[1], site.now)}
    assert browser.post_form("/profile", "/profile/second-factor/confirm", **fields).status_code == 303
    site.now += STEP_SECONDS
    return found[1]


def ticket_of(answer: httpx.Response) -> str:
    found = re.search(r'name="ticket" value="([^"]+)"', answer.text)
    assert found, answer.text
    return found[1]


def events(capfd: pytest.CaptureFixture[str], *names: str) -> list[str]:
    """The lines of the log with one of these events, without colours."""
    written = capfd.readouterr()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", written.out + written.err).splitlines()
    return [line for line in lines if any(name in line for name in names)]


def test_a_log_in_needs_password_and_code_and_each_code_serves_once(site: Site) -> None:
    secret = set_up(site, site.user("lin"))
    browser = site.browser()
    asked = browser.post_form("/login", name="lin", password=PASSWORD, next="/nodes")
    assert asked.status_code == 200
    assert "fedsim_session" not in browser.cookies
    ticket = ticket_of(asked)
    assert browser.post_form("/login", "/login/code", ticket=ticket, code="000000").status_code == 403
    code = code_of(secret, site.now)
    entered = browser.post_form("/login", "/login/code", ticket=ticket, code=f"{code[:3]} {code[3:]}", next="/nodes")
    assert (entered.status_code, entered.headers["Location"]) == (303, "/nodes")
    assert browser.get("/tasks").status_code == 200
    thief = site.browser()
    again = thief.post_form("/login", name="lin", password=PASSWORD)
    refused = thief.post_form("/login", "/login/code", ticket=ticket_of(again), code=code)
    assert refused.status_code == 403
    assert "used before" in refused.text
    assert "fedsim_session" not in thief.cookies


def test_codes_of_other_times_are_wrong_and_guessing_them_ends_soon(site: Site) -> None:
    secret = set_up(site, site.user("lin"))
    browser = site.browser()
    ticket = ticket_of(browser.post_form("/login", name="lin", password=PASSWORD))
    for late in (-3, 3):
        code = code_of(secret, site.now + late * STEP_SECONDS)
        assert browser.post_form("/login", "/login/code", ticket=ticket, code=code).status_code == 403
    for wrong in ("", "12345", "１２３４５６"):
        assert browser.post_form("/login", "/login/code", ticket=ticket, code=wrong).status_code == 403
    right = code_of(secret, site.now)
    assert browser.post_form("/login", "/login/code", ticket=ticket, code=right).status_code == 429
    site.now += 301
    late_ticket = browser.post_form("/login", "/login/code", ticket=ticket, code=code_of(secret, site.now))
    assert late_ticket.status_code == 403
    assert "open for too long" in late_ticket.text
    ticket = ticket_of(browser.post_form("/login", name="lin", password=PASSWORD))
    assert browser.post_form("/login", "/login/code", ticket=ticket, code=code_of(secret, site.now)).status_code == 303


def test_no_ticket_can_be_made_up(site: Site) -> None:
    secret = set_up(site, site.user("lin"))
    for forged in ("", "1", "1.2", "1.99999999999.00", "é.1.2", "9.99999999999.x", "1.99999999999."):
        answer = site.browser().post_form("/login", "/login/code", ticket=forged, code=code_of(secret, site.now))
        assert answer.status_code == 403


def test_a_ticket_is_worthless_without_a_second_factor(site: Site) -> None:
    site.user("lin")
    user = site.store.users.by_name("lin")
    assert user is not None
    browser = site.browser()
    answer = browser.post_form("/login", "/login/code", ticket=second_factor.make_ticket(user, site.now), code="000000")
    assert answer.status_code == 403
    assert "fedsim_session" not in browser.cookies


def test_a_second_factor_is_set_and_removed_with_password_and_code(site: Site) -> None:
    browser = site.user("lin")
    secret = second_factor.new_secret()
    code = code_of(secret, site.now)
    wrong = browser.post_form(
        "/profile", "/profile/second-factor/confirm", secret=secret, present="a wrong one", code=code
    )
    assert "is not your password" in wrong.text
    weak = browser.post_form("/profile", "/profile/second-factor/confirm", secret="AAAA", present=PASSWORD, code=code)
    assert weak.status_code == 400
    secret = set_up(site, browser)
    assert secret not in browser.get("/profile").text
    remove, code = "/profile/second-factor/remove", code_of(secret, site.now)
    assert browser.post_form("/profile", remove, present="a wrong one", code=code).status_code == 422
    assert browser.post_form("/profile", remove, present=PASSWORD).status_code == 403
    assert browser.post_form("/profile", remove, present=PASSWORD, code=code).status_code == 303
    site.browser().log_in("lin")


def test_an_administrator_may_require_it_and_remove_a_lost_one(tmp_path: Path) -> None:
    site = make_site(tmp_path, require_second_factor="all")
    browser = site.user("lin")
    assert browser.get("/tasks").headers["Location"] == "/profile"
    assert "this site requires it" in browser.get("/profile").text
    set_up(site, browser)
    assert browser.get("/tasks").status_code == 200
    admin, lin = site.admin(), site.store.users.by_name("lin")
    assert lin is not None
    set_up(site, admin)
    assert admin.get("/api/v1/users").json()["users"][0]["second_factor"] is True
    assert lin.totp_secret is not None
    assert lin.totp_secret not in admin.get("/api/v1/users").text + admin.get("/admin/users").text
    removed = admin.post_form("/admin/users", f"/admin/users/{lin.id}/remove-second-factor")
    assert removed.status_code == 303
    assert site.browser().log_in("lin").get("/tasks").headers["Location"] == "/profile"
    site.store.close()


def test_only_administrators_may_be_required_to_have_one(tmp_path: Path) -> None:
    site = make_site(tmp_path, require_second_factor="admins")
    assert site.user("lin").get("/tasks").status_code == 200
    assert site.admin().get("/tasks").status_code == 303
    site.store.close()


def test_fedsim_login_asks_for_the_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as web:
        web.token("ada")
        ada = web.site.store.users.by_name("ada")
        assert ada is not None
        secret = second_factor.new_secret()
        web.site.store.users.set_totp(ada.id, secret)
        terminal = Terminal(capsys, monkeypatch, tmp_path)
        arguments = ("login", "--url", web.url, "--name", "ada", "--password-stdin")
        refused = terminal.run(*arguments, typed=f"{PASSWORD}\n")
        assert refused.code == 77
        assert "--code" in refused.err
        code = code_of(secret, web.site.now)
        assert terminal.run(*arguments, "--code", code, "--days", "7", typed=f"{PASSWORD}\n").code == 0
        token = web.site.store.tokens.of_user(ada.id)[-1]
        assert token.expires_at == token.created_at + 7 * 86_400
        assert terminal.run("tasks", "--json").document == {"tasks": []}


def test_a_token_expires_on_its_day(site: Site) -> None:
    browser = site.user("lin")
    for days, problem in (("0", "from 1 to 365"), ("366", "from 1 to 365"), ("x", "from 1 to 365")):
        answer = browser.post_form("/profile", "/profile/tokens", label="laptop", days=days)
        assert answer.status_code == 422
        assert problem in answer.text
    page = browser.post_form("/profile", "/profile/tokens", label="laptop", days="7").text
    secret = page.split('id="secret">')[1].split("<")[0]
    program = site.browser(Authorization=f"Bearer {secret}")
    site.now += 7 * 86_400 - 1
    assert program.get("/api/v1/me").status_code == 200
    site.now += 2
    assert program.get("/api/v1/me").status_code == 401
    assert "expired" in site.browser().log_in("lin").get("/profile").text


def test_refused_requests_are_logged_at_a_bounded_rate(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    browser = site.user("lin")
    site.admin()
    assert browser.get("/admin/users").status_code == 403
    assert browser.post("/logout", data={"csrf": "wrong"}).status_code == 403
    assert browser.post("/logout", data={"csrf": "x"}, headers={"Origin": "https://evil.example"}).status_code == 403
    for _ in range(20):
        browser.get("/api/v1/me", headers={"Authorization": "Bearer fedsim_none"})
    lines = events(capfd, "request_refused")
    assert ["/admin/users" in lines[0], "/logout" in lines[1], "another site" in lines[2]] == [True] * 3
    assert len(lines) == 5


def test_another_users_task_and_what_no_page_sends_are_logged_as_refused(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    lin = site.user("lin")
    site.user("eve")
    site.task("eve")
    assert lin.get("/api/v1/tasks/1").status_code == 404
    assert lin.get("/api/v1/tasks/2").status_code == 404
    assert lin.post("/login", json={}).status_code == 415
    lines = events(capfd, "request_refused")
    assert ["/tasks/1" in lines[0] and "user=lin" in lines[0], "status=415" in lines[1]] == [True, True]
    assert len(lines) == 2


def test_each_step_of_a_log_in_is_logged_with_its_factors(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    secret = set_up(site, site.user("lin"))
    browser = site.browser()
    browser.post_form("/login", name="lin", password="a wrong one")
    ticket = ticket_of(browser.post_form("/login", name="lin", password=PASSWORD))
    browser.post_form("/login", "/login/code", ticket=ticket, code="000000")
    code = code_of(secret, site.now)
    assert browser.post_form("/login", "/login/code", ticket=ticket, code=code).status_code == 303
    browser.post_form("/profile", "/profile/password", old="a wrong one", new="another good one")
    browser.post_form("/profile", "/logout")
    eve = site.user("eve")
    site.store.users.set_state(site.store.users.by_name("eve").id, UserState.DISABLED)  # type: ignore[union-attr]
    eve.post_form("/login", name="eve", password=PASSWORD)
    lines = events(capfd, "login_failed", "password_", "code_refused", "logged_")
    found = [re.search(r"(login_failed|password_\w+|code_refused|logged_\w+)", line)[1] for line in lines]  # type: ignore[index]
    assert found == [
        "login_failed", "password_accepted", "code_refused", "logged_in", "password_refused", "logged_out",
        "login_failed",
    ]  # fmt: skip
    assert "factors='password, code'" in lines[3] or "factors=password, code" in lines[3]
    assert "state=disabled" in lines[-1]
    assert code not in "".join(lines)
