"""Who gets in, who does not, and what guards the doors."""

from __future__ import annotations

import re
import sqlite3
import time
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import pytest
from argon2 import PasswordHasher
from web_support import PASSWORD, Browser, Site, hashed_password, make_site

from fedsim.store.records import UserRole, UserState
from fedsim.web import accounts, passwords
from fedsim.web.errors import Fault
from fedsim.web.login_limits import known_browser


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path)
    yield made
    made.store.close()


def configured(tmp_path: Path, **config: Any) -> Site:
    return make_site(tmp_path, **config)


def test_an_open_registration_logs_in_at_once(site: Site) -> None:
    browser = site.browser()
    answer = browser.post_form("/register", name="李明", password=PASSWORD)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/tasks")
    assert "李明" in browser.get("/tasks").text


def test_a_registration_by_approval_waits_and_says_so(tmp_path: Path) -> None:
    site = configured(tmp_path, registration="approval")
    browser = site.browser()
    answer = browser.post_form("/register", name="lin", password=PASSWORD)
    assert answer.status_code == 200
    assert "is waiting for an administrator" in answer.text
    refused = browser.post_form("/login", name="lin", password=PASSWORD)
    assert refused.status_code == 403
    assert "is waiting for an administrator" in refused.text
    admin = site.admin()
    waiting = site.store.users.by_name("lin")
    assert waiting is not None
    assert admin.post_form("/admin/users", f"/admin/users/{waiting.id}", action="approve").status_code == 303
    browser.log_in("lin")
    site.store.close()


def test_registering_must_wait_after_too_many_from_one_address(tmp_path: Path) -> None:
    site = configured(tmp_path, registrations_per_address=2, registration_window_seconds=600)
    for name in ("lin", "wang"):
        assert site.browser(address="127.0.0.2").post_form("/register", name=name, password=PASSWORD).status_code == 303
    answer = site.browser(address="127.0.0.2").post_form("/register", name="zhao", password=PASSWORD)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "600")
    assert "Try again in at most 10 min" in answer.text
    assert 'value="zhao"' in answer.text
    assert site.store.users.by_name("zhao") is None
    assert site.browser(address="127.0.0.3").post_form("/register", name="zhao", password=PASSWORD).status_code == 303
    site.now += 601
    assert site.browser(address="127.0.0.2").post_form("/register", name="sun", password=PASSWORD).status_code == 303
    site.store.close()


def test_registering_must_wait_after_too_many_from_anywhere(tmp_path: Path) -> None:
    site = configured(tmp_path, registrations_overall=2)
    for number, status in enumerate((303, 422, 429)):  # what is refused counts as well: it tells which names are taken
        browser = site.browser(address=f"127.0.0.{number + 2}")
        assert browser.post_form("/register", name="lin", password=PASSWORD).status_code == status
    site.store.close()


def test_a_whole_network_of_ipv6_is_one_address(tmp_path: Path) -> None:
    site = configured(tmp_path, login_attempts=2, secure_cookies=False)
    site.user("lin")
    for number in range(6):
        site.browser(address=f"2001:db8::{number}").post_form("/login", name=f"name-{number}", password="wrong")
    assert site.browser(address="2001:db8::9").post_form("/login", name="lin", password=PASSWORD).status_code == 429
    site.browser(address="2001:db8:0:1::9").log_in("lin")
    site.store.close()


def test_hashing_occupies_few_threads_and_further_requests_are_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.user("lin")
    at_work, go_on = Semaphore(0), Event()
    together: list[int] = []

    class Slow:
        def verify(self, *_: object) -> bool:
            at_work.release()
            together.append(1)
            assert go_on.wait(30)
            return True

        def check_needs_rehash(self, _: str) -> bool:
            return False

    monkeypatch.setattr(passwords, "_HASHER", Slow())
    browsers = [site.browser() for _ in range(passwords.MAX_WAITING + 1)]
    tokens = [browser.csrf("/login") for browser in browsers]
    with ThreadPoolExecutor(len(browsers)) as pool:
        coming = [
            pool.submit(browser.post, "/login", data={"csrf": token, "name": "lin", "password": PASSWORD})
            for browser, token in zip(browsers, tokens, strict=True)
        ]
        for _ in range(passwords.MAX_HASHING):
            assert at_work.acquire(timeout=30)
        turned_away = next(as_completed(coming)).result()
        assert len(together) == passwords.MAX_HASHING
        go_on.set()
        statuses = sorted(one.result().status_code for one in coming)
    assert (turned_away.status_code, turned_away.headers["Retry-After"]) == (503, str(passwords.RETRY_SECONDS))
    assert "Try again shortly" in turned_away.text
    assert statuses == [303] * passwords.MAX_WAITING + [503]


def test_a_password_is_the_same_in_each_unicode_form(site: Site) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Geheimnis-ä-öü-77") for form in ("NFC", "NFD"))
    site.user("lin")
    user = site.store.users.by_name("lin")
    assert user is not None
    for stored in (composed, decomposed):  # an older version hashed what was typed
        site.store.users.set_password_hash(user.id, passwords._HASHER.hash(stored))
        for typed in (decomposed, composed):
            accounts.log_in(site.store, site.config, "lin", typed, address="192.0.2.1", now=time.time())
        kept = site.store.users.by_name("lin")
        assert kept is not None
        assert passwords.matching_form(kept.password_hash, decomposed) == unicodedata.normalize("NFKC", composed)
    assert passwords.hash_password(decomposed) != composed
    assert passwords.is_right(passwords.hash_password(decomposed), composed)
    assert not passwords.is_right(passwords.hash_password(composed), "Geheimnis-a-ou-77")


def test_a_closed_registration_makes_no_account(tmp_path: Path) -> None:
    site = configured(tmp_path, registration="closed")
    assert "Registration is closed" in site.browser().get("/register").text
    browser = site.browser()
    answer = browser.post("/register", data={"csrf": browser.csrf("/login"), "name": "lin", "password": PASSWORD})
    assert answer.status_code == 403
    assert site.store.users.all() == []
    site.store.close()


@pytest.mark.parametrize(
    ("name", "password", "problem"),
    [
        ("x", PASSWORD, "2 to 64 letters"),
        ("_lin", PASSWORD, "2 to 64 letters"),
        ("li n", PASSWORD, "2 to 64 letters"),
        ("lin\r\nSet-Cookie: a=b", PASSWORD, "2 to 64 letters"),
        ("lin", "1234567", "at least 8 characters"),
        ("lin", "password", "easy to guess"),
        ("lin", "qwertyuiop", "easy to guess"),
        ("lin", "Passw0rd!", "easy to guess"),
        ("lin", "12.04.1987", "easy to guess"),
        ("christopher-wang", "christopher-wang", "easy to guess"),
        ("lin", "fedsim123", "easy to guess"),
        ("lin", "界" * 400, "at most 1024 bytes"),
        ("ROOT", PASSWORD, "is taken"),
        ("ｒｏｏｔ", PASSWORD, "is taken"),
    ],
)
def test_a_bad_name_or_password_is_named_and_what_was_typed_stays(
    site: Site, name: str, password: str, problem: str
) -> None:
    accounts.create_admin(site.store, "root", PASSWORD, now=site.now)
    answer = site.browser().post_form("/register", name=name, password=password)
    assert answer.status_code == 422
    assert problem in answer.text
    assert f'value="{name}"' in answer.text or "\r" in name
    assert password == name or f'value="{password}"' not in answer.text
    assert len(site.store.users.all()) == 1


def test_passwords_and_sessions_are_stored_only_as_hashes(site: Site, tmp_path: Path) -> None:
    browser = site.user("lin")
    secret = (
        browser.post_form("/profile", "/profile/tokens", label="laptop").text.split('id="secret">')[1].split("<")[0]
    )
    session = str(browser.cookies["fedsim_session"])
    with sqlite3.connect(tmp_path / "fedsim.db") as database:
        content = "\n".join(database.iterdump())
    database.close()
    assert "$argon2id$" in content
    for hidden in (PASSWORD, session, secret):
        assert hidden not in content


def test_the_sessions_id_changes_at_each_log_in_and_the_old_one_is_worthless(site: Site) -> None:
    browser = site.user("lin")
    first = browser.cookies["fedsim_session"]
    browser.log_in("lin")
    assert browser.cookies["fedsim_session"] != first
    thief = site.browser()
    thief.cookies.set("fedsim_session", first)
    assert thief.get("/tasks").status_code == 303


def test_an_id_that_the_browser_brought_is_never_taken_over(site: Site) -> None:
    site.user("lin")
    browser = site.browser()
    browser.cookies.set("fedsim_session", "chosen-by-somebody-else", domain="127.0.0.1", path="/")
    browser.log_in("lin")
    assert "chosen-by-somebody-else" not in [cookie.value for cookie in browser.cookies.jar]


def test_logging_out_ends_the_session_in_the_database(site: Site) -> None:
    browser = site.user("lin")
    session = str(browser.cookies["fedsim_session"])
    assert browser.post_form("/tasks", "/logout").status_code == 303
    assert site.store.sessions.get(accounts.hash_secret(session), site.now) is None


def test_a_session_ends_after_its_hours(tmp_path: Path) -> None:
    site = configured(tmp_path, session_idle_hours=100)
    browser = site.user("lin")
    site.now += 12 * 3600 - 1
    assert browser.get("/tasks").status_code == 200
    site.now += 2
    assert browser.get("/tasks").headers["Location"] == "/login?next=/tasks"
    site.store.close()


def test_a_session_ends_when_no_one_uses_it_though_its_page_refreshes_itself(tmp_path: Path) -> None:
    site = configured(tmp_path, session_hours=100)
    browser = site.user("lin")
    for _ in range(3):
        site.now += 3 * 3600
        assert browser.get("/tasks").status_code == 200, "it was used"
    site.now += 3 * 3600
    assert browser.get("/tasks", headers={"HX-Request": "true"}).status_code == 200
    site.now += 2 * 3600
    assert browser.get("/tasks").status_code == 303
    site.store.close()


def test_a_user_sees_all_own_sessions_and_ends_another_one(site: Site) -> None:
    here, stranger = site.user("lin"), site.user("wang")
    there = site.browser(address="127.0.0.9", **{"User-Agent": "Another/1.0 \x1b[2J"}).log_in("lin")
    page = here.get("/profile").text
    assert "Another/1.0" in page
    assert "127.0.0.9" in page
    assert "\x1b" not in page
    assert page.count("this browser") == 1
    (action,) = re.findall(r'action="(/profile/sessions/[0-9a-f]+/end)"', page)
    assert stranger.post_form("/profile", action).status_code == 404, "only the user's own"
    assert there.get("/tasks").status_code == 200
    wrong = here.post_form("/profile", action, present="a wrong password")
    assert wrong.status_code == 422
    assert "the session was not ended" in wrong.text
    assert there.get("/tasks").status_code == 200
    assert here.post_form("/profile", action, present=PASSWORD).status_code == 303
    assert there.get("/tasks").status_code == 303
    assert here.get("/tasks").status_code == 200


def test_a_disabled_user_is_out_at_once_and_cannot_come_back(site: Site) -> None:
    browser, admin = site.user("lin"), site.admin()
    program = token_of(site, browser)
    lin = site.store.users.by_name("lin")
    assert lin is not None
    admin.post_form("/admin/users", f"/admin/users/{lin.id}", action="disable")
    assert browser.get("/tasks").status_code == 303
    assert program.get("/api/v1/me").status_code == 401
    answer = site.browser().post_form("/login", name="lin", password=PASSWORD)
    assert "disabled" in answer.text
    wrong = site.browser().post_form("/login", name="lin", password="a wrong password")
    assert "disabled" not in wrong.text, "only who knows the password may learn this"


def test_an_unknown_name_and_a_wrong_password_get_the_same_answer(site: Site) -> None:
    site.user("lin")
    answers = [site.browser().post_form("/login", name=name, password="wrong") for name in ("lin", "nobody")]
    pages = [answer.text.replace("nobody", "lin") for answer in answers]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert pages[0].split("<main")[1].split("csrf")[0] == pages[1].split("<main")[1].split("csrf")[0]


def wrong_passwords(site: Site, name: str, *, address: str, count: int) -> list[int]:
    """The statuses of log-ins with a wrong password, one a minute."""
    statuses = []
    for _ in range(count):
        site.now += 60
        statuses.append(
            site.browser(address=address).post_form("/login", name=name, password="a wrong one").status_code
        )
    return statuses


def test_wrong_passwords_lock_the_pair_of_address_and_name_and_nothing_else(tmp_path: Path) -> None:
    site = configured(tmp_path, login_attempts=3, login_window_seconds=600)
    site.user("lin")
    site.user("wang")
    assert wrong_passwords(site, "LIN", address="127.0.0.2", count=3) == [403] * 3
    answer = site.browser(address="127.0.0.2").post_form("/login", name="lin", password=PASSWORD)
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "600"
    assert "Try again in at most 10 min" in answer.text
    site.browser(address="127.0.0.2").log_in("wang")
    site.browser(address="127.0.0.3").log_in("lin")
    site.now += 479
    assert site.browser(address="127.0.0.2").post_form("/login", name="lin", password=PASSWORD).status_code == 429
    site.now += 122
    site.browser(address="127.0.0.2").log_in("lin")
    site.store.close()


def test_no_one_locks_a_user_out_of_a_browser_that_is_known(tmp_path: Path) -> None:
    site = configured(tmp_path, login_attempts=3, login_window_seconds=6000)
    site.user("lin")
    known = site.browser(address="127.0.0.2").log_in("lin")
    mark = known.cookies["fedsim_browser"]
    known.post_form("/tasks", "/logout")
    for address in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):  # also from the user's own address
        wrong_passwords(site, "lin", address=address, count=4)
    known.log_in("lin")
    for _ in range(3):
        assert known.post_form("/login", name="lin", password="a wrong one").status_code == 403
    assert known.post_form("/login", name="lin", password=PASSWORD).status_code == 429, "its limit is its own"
    site.now += 6001
    other = site.browser(address="127.0.0.9")
    other.cookies.set("fedsim_browser", mark, domain="127.0.0.1", path="/")
    user = site.store.users.by_name("lin")
    assert user is not None
    assert known_browser(user, mark) is not None
    site.store.users.set_password_hash(user.id, passwords.hash_password("another good one"))
    changed = site.store.users.by_name("lin")
    assert known_browser(changed, mark) is None, "a new password forgets all browsers"
    assert [known_browser(user, forged) for forged in ("", ".", "a.b", f"x{mark}", mark[:-1], f"{mark}é")] == [None] * 6
    site.store.close()


def test_a_name_under_attack_is_slowed_for_unknown_browsers_and_never_locked(tmp_path: Path) -> None:
    site = configured(tmp_path, login_attempts=3, login_window_seconds=6000)
    site.user("lin")
    for number in range(3):
        wrong_passwords(site, "lin", address=f"127.0.0.{number + 2}", count=1)
    site.now += 60
    assert site.browser(address="127.0.0.8").post_form("/login", name="lin", password="a wrong one").status_code == 403
    slowed = site.browser(address="127.0.0.9").post_form("/login", name="lin", password=PASSWORD)
    assert (slowed.status_code, slowed.headers["Retry-After"]) == (429, "10")
    site.now += 11
    site.browser(address="127.0.0.9").log_in("lin")
    site.store.close()


def test_an_address_must_wait_after_too_many_failures_with_any_names(tmp_path: Path) -> None:
    site = configured(tmp_path, login_attempts=3)
    site.user("lin")
    for number in range(9):
        site.browser(address="127.0.0.7").post_form("/login", name=f"name-{number}", password="wrong")
    assert site.browser(address="127.0.0.7").post_form("/login", name="lin", password=PASSWORD).status_code == 429
    site.browser(address="127.0.0.8").log_in("lin")
    site.store.close()


def test_forwarded_addresses_are_believed_only_from_a_configured_proxy(tmp_path: Path) -> None:
    for behind, others_wait in ((False, True), (True, False)):
        folder = tmp_path / str(behind)
        folder.mkdir()
        site = configured(folder, login_attempts=2, behind_proxy=behind)
        site.user("lin")
        for number in range(6):
            spoofing = site.browser(**{"X-Forwarded-For": f"198.51.100.{number}"})
            spoofing.post_form("/login", name=f"name-{number}", password="wrong")
        answer = site.browser(**{"X-Forwarded-For": "198.51.100.9"}).post_form("/login", name="lin", password=PASSWORD)
        assert (answer.status_code == 429) is others_wait
        site.store.close()


def test_old_hashes_are_renewed_when_the_parameters_have_changed(site: Site) -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    user = site.store.users.create("lin", weak, role=UserRole.USER, state=UserState.ACTIVE, language="", now=site.now)
    site.browser().log_in("lin")
    renewed = site.store.users.get(user.id)
    assert renewed is not None
    assert renewed.password_hash != weak
    site.browser().log_in("lin")


def token_of(site: Site, browser: Browser) -> Browser:
    """A program with a token that was made in this browser."""
    page = browser.post_form("/profile", "/profile/tokens", label="a program").text
    secret = page.split('id="secret">')[1].split("<")[0]
    program = site.browser(Authorization=f"Bearer {secret}")
    assert program.get("/api/v1/me").status_code == 200
    return program


def test_a_better_hash_at_log_in_ends_neither_sessions_nor_tokens(site: Site) -> None:
    here = site.user("lin")
    program = token_of(site, here)
    weak = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    site.store.users.renew_password_hash(1, hashed_password(), weak)
    site.browser().log_in("lin")
    assert here.get("/tasks").status_code == 200
    assert program.get("/api/v1/me").status_code == 200


def test_changing_the_password_keeps_this_browser_and_ends_all_else(site: Site) -> None:
    here, there = site.user("lin"), site.browser().log_in("lin")
    program = token_of(site, here)
    assert "revokes your tokens" in here.get("/profile").text
    wrong = here.post_form("/profile", "/profile/password", old="wrong", new="short")
    assert wrong.status_code == 422
    assert "is not your password" in wrong.text
    assert "at least 8 characters" in wrong.text
    assert here.post_form("/profile", "/profile/password", old=PASSWORD, new="another good one").status_code == 200
    assert here.get("/tasks").status_code == 200
    assert there.get("/tasks").status_code == 303
    assert program.get("/api/v1/me").status_code == 401
    site.browser().log_in("lin", "another good one")


def test_a_session_left_open_is_no_place_to_guess_the_password(tmp_path: Path) -> None:
    site = configured(tmp_path, login_attempts=3)
    browser = site.user("lin")
    for _ in range(3):
        wrong = browser.post_form("/profile", "/profile/password", old="wrong", new="another good one")
        assert wrong.status_code == 422
    refused = browser.post_form("/profile", "/profile/password", old=PASSWORD, new="another good one")
    assert refused.status_code == 429
    assert "Too many attempts" in refused.text
    site.store.close()


def test_an_administrator_resets_a_password_which_is_shown_once(site: Site) -> None:
    browser, admin = site.user("lin"), site.admin()
    program = token_of(site, browser)
    lin = site.store.users.by_name("lin")
    assert lin is not None
    page = admin.post_form("/admin/users", f"/admin/users/{lin.id}/reset-password").text
    password = page.split('id="secret">')[1].split("<")[0]
    assert browser.get("/tasks").status_code == 303
    assert program.get("/api/v1/me").status_code == 401
    assert password not in admin.get("/admin/users").text
    again = site.browser().log_in("lin", password)
    assert again.get("/tasks").headers["Location"] == "/profile"
    assert "someone else knows the present one" in again.get("/profile").text
    assert again.post_form("/profile", "/profile/tokens", label="laptop").status_code == 303
    refused = again.post("/api/v1/tokens", json={"label": "x"}, headers={"X-CSRF-Token": again.csrf("/profile")})
    assert refused.status_code == 403
    assert "password of your own" in refused.json()["error"]
    assert site.store.tokens.of_user(lin.id) == []
    same = again.post_form("/profile", "/profile/password", old=password, new=password)
    assert "is your present password" in same.text
    changed = again.post_form("/profile", "/profile/password", old=password, new="another good one")
    assert changed.status_code == 200
    assert again.get("/tasks").status_code == 200


def test_administrators_make_others_and_cannot_lock_themselves_out(site: Site) -> None:
    admin, browser = site.admin(), site.user("lin")
    lin, root = site.store.users.by_name("lin"), site.store.users.by_name("root")
    assert lin is not None
    assert root is not None
    admin.post_form("/admin/users", f"/admin/users/{lin.id}", action="make-admin")
    assert browser.get("/admin/users").status_code == 200
    assert admin.post_form("/admin/users", f"/admin/users/{root.id}", action="disable").status_code == 422
    assert admin.post_form("/admin/users", f"/admin/users/{root.id}", action="explode").status_code == 400
    assert admin.post_form("/admin/users", "/admin/users/999", action="disable").status_code == 404


def test_a_first_administrator_is_made_by_a_function_that_checks_the_same_rules(site: Site) -> None:
    with pytest.raises(Fault) as caught:
        accounts.create_admin(site.store, "root", "short", now=site.now)
    assert str(caught.value.problems["password"]) == "must have at least 8 characters"
    user = accounts.create_admin(site.store, "root", PASSWORD, now=site.now)
    assert (user.role, user.state) == (UserRole.ADMIN, UserState.ACTIVE)


def test_a_log_in_that_meets_a_new_password_gets_no_session(site: Site) -> None:
    accounts.create_admin(site.store, "root", PASSWORD, now=site.now)
    checked = accounts.log_in(site.store, site.config, "root", PASSWORD, address="127.0.0.1", now=site.now)
    accounts.reset_password(site.store, checked, by=checked, now=site.now)
    with pytest.raises(Fault) as refused:
        accounts.start_session(site.store, site.config, checked, old=None, now=site.now)
    assert refused.value.status == 403
    with pytest.raises(Fault):
        accounts.make_token(site.store, checked, "laptop", now=site.now)


FORMS = [
    "/login", "/register", "/logout", "/language", "/tasks/new", "/tasks/1/stop", "/tasks/1/delete",
    "/profile/password", "/profile/tokens", "/profile/tokens/1/delete", "/admin/users/1",
    "/admin/users/1/reset-password", "/admin/users/1/remove-second-factor", "/login/code", "/profile/second-factor",
    "/profile/second-factor/confirm", "/profile/second-factor/remove", f"/profile/sessions/{'0' * 64}/end",
]  # fmt: skip


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_every_form_without_its_token_is_refused(tmp_path: Path, path: str, token: str | None) -> None:
    site = make_site(tmp_path)
    user = site.store.users.create("root", "!", role=UserRole.ADMIN, state=UserState.ACTIVE, language="", now=site.now)
    task = site.task("root")
    browser = site.browser()
    session_id, _ = accounts.start_session(site.store, site.config, user, old=None, now=site.now)
    browser.cookies.set("fedsim_session", session_id)
    fields = {"name": "x", "password": PASSWORD} | ({} if token is None else {"csrf": token})
    assert browser.post(path, data=fields).status_code == 403
    assert site.store.tasks.get(task.number) == task
    site.store.close()


def test_a_form_from_another_sites_page_is_refused_even_with_the_token(site: Site) -> None:
    browser = site.user("lin")
    token = browser.csrf("/tasks")
    for header in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert browser.post("/logout", data={"csrf": token}, headers=header).status_code == 403
    assert browser.post("/logout", data={"csrf": token}, headers={"Origin": "http://127.0.0.1"}).status_code == 303


def test_a_token_of_one_session_is_worthless_in_another(site: Site) -> None:
    token, other = site.user("lin").csrf("/tasks"), site.user("wang")
    assert other.post("/logout", data={"csrf": token}).status_code == 403


def cookies_of(browser: Browser, page: str = "/login") -> str:
    return browser.get(page).headers.get("Set-Cookie", "")


def test_cookies_are_guarded_and_secure_over_https(site: Site) -> None:
    plain = cookies_of(site.browser())
    assert plain.startswith("fedsim_form=")
    assert "HttpOnly; SameSite=Lax" in plain
    assert "Secure" not in plain
    secure = cookies_of(site.browser(url="https://lab.example"))
    assert secure.startswith("__Host-fedsim_form=")
    assert secure.endswith("; Secure")
    assert "Path=/;" in secure
    assert "Domain" not in secure


def test_a_person_logs_in_over_https(site: Site) -> None:
    site.user("lin")
    browser = site.browser(url="https://lab.example", address="192.0.2.4").log_in("lin")
    assert browser.get("/tasks").status_code == 200


def test_a_log_out_clears_what_the_browser_keeps_where_browsers_heed_it(site: Site) -> None:
    site.user("lin")
    secure = site.browser(url="https://lab.example", address="192.0.2.4").log_in("lin")
    assert secure.post_form("/tasks", "/logout").headers["Clear-Site-Data"] == '"cache", "storage"'
    plain = site.browser().log_in("lin")
    assert "Clear-Site-Data" not in plain.post_form("/tasks", "/logout").headers, "browsers complain about it"


def test_no_password_is_taken_over_plain_http_from_afar_unless_allowed(tmp_path: Path, site: Site) -> None:
    far = site.browser(url="http://lab.example", address="192.0.2.4")
    answer = far.get("/login")
    assert answer.status_code == 403
    assert "https://" in answer.text
    assert "Set-Cookie" not in answer.headers
    folder = tmp_path / "allowed"
    folder.mkdir()
    allowed = configured(folder, secure_cookies=False)
    allowed.user("lin")
    allowed.browser(url="http://lab.example", address="192.0.2.4").log_in("lin")
    allowed.store.close()


@pytest.mark.parametrize(
    ("wanted", "leads_to"),
    [
        ("/tasks/7", "/tasks/7"),
        ("//evil.example", "/tasks"),
        ("https://evil.example", "/tasks"),
        ("/\\evil.example", "/tasks"),
        ("/a\r\nSet-Cookie: b", "/tasks"),
    ],
)
def test_after_log_in_one_stays_on_this_site(site: Site, wanted: str, leads_to: str) -> None:
    accounts.create_admin(site.store, "lin", PASSWORD, now=site.now)
    answer = site.browser().post_form("/login", name="lin", password=PASSWORD, next=wanted)
    assert answer.headers["Location"] == leads_to
