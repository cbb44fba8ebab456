from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from cli_support import Terminal
from web_support import PASSWORD, make_site

from fedsim.web import accounts

ACCOUNTS = Path(__file__).parents[2] / "ansible" / "roles" / "web" / "files" / "accounts.sh"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "web.yml"
    path.write_text(f"database: sqlite:///{tmp_path}/fedsim.db\n", encoding="utf-8")
    return path


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Terminal]:
    yield Terminal(capsys, monkeypatch, tmp_path)
    structlog.reset_defaults()


def test_a_new_installation_gets_its_first_administrator(terminal: Terminal, config: Path, tmp_path: Path) -> None:
    assert terminal.run("admin", "migrate", "--config", config).code == 0
    result = terminal.run("admin", "create", "root", "--password-stdin", "--config", config, typed=f"{PASSWORD}\n")
    assert result.code == 0, result.err
    site = make_site(tmp_path)
    with site.browser() as browser:
        browser.log_in("root")
        assert browser.get("/admin/users").status_code == 200
    site.store.close()


def test_a_password_that_ansible_generated_must_be_changed_at_the_first_log_in(
    terminal: Terminal, config: Path, tmp_path: Path
) -> None:
    (line,) = [one for one in ACCOUNTS.read_text(encoding="utf-8").splitlines() if "$admin create" in one]
    options = line.partition('"$1"')[2].split()
    assert "--must-change-password" in options
    assert terminal.run("admin", "migrate", "--config", config).code == 0
    result = terminal.run("admin", "create", "root", *options, "--config", config, typed=f"{PASSWORD}\n")
    assert result.code == 0, result.err
    site = make_site(tmp_path)
    with site.browser() as browser:
        browser.log_in("root")
        assert browser.get("/admin/users").headers["Location"] == "/profile"
        made = browser.post("/api/v1/tokens", json={"label": "x"}, headers={"X-CSRF-Token": browser.csrf("/profile")})
        assert made.status_code == 403
        browser.post_form("/profile", "/profile/password", old=PASSWORD, new="a sentence of my own")
        assert browser.get("/admin/users").status_code == 200
    site.store.close()


def test_a_password_is_asked_for_twice(
    terminal: Terminal, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert terminal.run("admin", "migrate", "--config", config).code == 0
    answers = iter([PASSWORD, "a slip of the hand", PASSWORD, PASSWORD])
    monkeypatch.setattr("click.termui.hidden_prompt_func", lambda _: next(answers))
    assert terminal.run("admin", "create", "root", "--config", config).code == 0
    assert next(answers, None) is None
    site = make_site(tmp_path)
    assert site.store.users.by_name("root") is not None
    site.store.close()


def test_a_name_and_a_password_that_are_invalid_are_both_reported(terminal: Terminal, config: Path) -> None:
    assert terminal.run("admin", "migrate", "--config", config).code == 0
    result = terminal.run("admin", "create", "!", "--password-stdin", "--config", config, typed="short\n")
    assert result.code == 65
    assert "\n  name: " in result.err
    assert "\n  password: " in result.err


def test_a_reset_password_is_the_only_thing_on_standard_output(
    terminal: Terminal, config: Path, tmp_path: Path
) -> None:
    site = make_site(tmp_path)
    site.user("ada")
    result = terminal.run("admin", "reset-password", "ada", "--config", config)
    assert result.code == 0, result.err
    with site.browser() as browser:
        browser.log_in("ada", result.out.strip())
    assert any("command line reset the password of ada" in event.text for event in site.store.events.newest())
    site.store.close()


def test_a_disabled_user_cannot_log_in_until_enabled(terminal: Terminal, config: Path, tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.user("ada")
    assert terminal.run("admin", "disable", "ada", "--config", config).code == 0
    with pytest.raises(accounts.BadInput, match="disabled"):
        accounts.log_in(site.store, site.config, "ada", PASSWORD, address="127.0.0.1", now=site.now)
    assert "disabled" in terminal.run("admin", "users", "--config", config).out
    assert terminal.run("admin", "enable", "ada", "--config", config).code == 0
    assert accounts.log_in(site.store, site.config, "ada", PASSWORD, address="127.0.0.1", now=site.now).name == "ada"
    site.store.close()


def test_users_are_listed_without_their_hashes(terminal: Terminal, config: Path, tmp_path: Path) -> None:
    site = make_site(tmp_path)
    site.user("ada")
    site.store.close()
    result = terminal.run("admin", "users", "--json", "--config", config)
    assert [user["name"] for user in result.document["users"]] == ["ada"]
    assert "argon2" not in result.out


def test_what_is_missing_is_reported_with_its_exit_code(terminal: Terminal, config: Path, tmp_path: Path) -> None:
    result = terminal.run("admin", "users", "--config", config)
    assert result.code == 69
    assert "fedsim.db" in result.err
    assert terminal.run("admin", "migrate", "--config", config).code == 0
    assert terminal.run("admin", "disable", "nobody", "--config", config).code == 66
    assert terminal.run("admin", "users", "--config", tmp_path / "none.yml").code == 78
