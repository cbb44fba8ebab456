from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import Terminal, Web, serving
from web_support import PASSWORD


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with serving(tmp_path, login_attempts=2) as web:
        web.token("ada")
        yield web


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Terminal:
    return Terminal(capsys, monkeypatch, tmp_path)


def log_in(web: Web, terminal: Terminal, password: str = PASSWORD) -> int:
    arguments = ("login", "--url", f"{web.url}/", "--name", "ada", "--password-stdin")
    return terminal.run(*arguments, typed=f"{password}\n").code


def labels(web: Web) -> list[str]:
    user = web.site.store.users.by_name("ada")
    assert user is not None
    return [token.label for token in web.site.store.tokens.of_user(user.id)]


def test_login_keeps_a_token_that_only_its_owner_can_read_and_logout_ends_it(web: Web, terminal: Terminal) -> None:
    assert log_in(web, terminal) == 0
    assert stat.S_IMODE(terminal.token_file.stat().st_mode) == 0o600
    assert f"fedsim on {socket.gethostname()}" in labels(web)
    assert terminal.run("tasks", "--json").document == {"tasks": []}
    assert terminal.run("logout").code == 0
    assert labels(web) == ["a test"]
    assert not terminal.token_file.exists()
    assert terminal.run("tasks").code == 77


def test_login_asks_for_missing_values(web: Web, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.termui.hidden_prompt_func", lambda _: PASSWORD)
    result = terminal.run("login", "--json", typed=f"{web.url}\nada\n")
    assert result.code == 0, result.err
    assert result.document == {"url": web.url, "user": "ada", "token_file": str(terminal.token_file)}


def test_a_wrong_password_exits_77_and_too_many_75(web: Web, terminal: Terminal) -> None:
    assert log_in(web, terminal, "wrong password") == 77
    assert not terminal.token_file.exists()
    assert log_in(web, terminal, "wrong password") == 77
    assert log_in(web, terminal) == 75
    result = terminal.run("login", "--url", web.url, "--name", "ada", "--password-stdin", typed=f"{PASSWORD}\n")
    assert "Too many attempts" in result.err


def test_login_says_where_a_password_that_someone_else_chose_is_changed(web: Web, terminal: Terminal) -> None:
    user = web.site.store.users.by_name("ada")
    assert user is not None
    web.site.store.users.set_password_hash(user.id, user.password_hash, must_change=True)
    result = terminal.run(
        "login", "--url", web.url, "--name", "ada", "--password-stdin", "--json", typed=f"{PASSWORD}\n"
    )
    told = "Choose a password of your own: someone else knows the present one."
    assert (result.code, result.document["error"]) == (77, f"{told} Do so on {web.url}/profile, then log in here again")
    assert not terminal.token_file.exists()


def test_a_password_is_not_sent_unencrypted_to_another_machine(terminal: Terminal) -> None:
    result = terminal.run(
        "login", "--url", "http://192.0.2.1:8080", "--name", "ada", "--password-stdin", typed=f"{PASSWORD}\n"
    )
    assert result.code == 77
    assert "not encrypted" in result.err


def test_a_token_that_others_can_read_is_not_used(web: Web, terminal: Terminal) -> None:
    assert log_in(web, terminal) == 0
    terminal.token_file.chmod(0o640)
    asked = len(web.asked)
    result = terminal.run("tasks")
    assert result.code == 77
    assert f"chmod 600 {terminal.token_file}" in result.err
    assert len(web.asked) == asked


def test_a_token_is_shown_to_no_other_web(web: Web, terminal: Terminal, tmp_path: Path) -> None:
    assert log_in(web, terminal) == 0
    folder = tmp_path / "other"
    folder.mkdir()
    with serving(folder) as other:
        result = terminal.run("tasks", "--url", other.url)
        assert result.code == 77
        assert "fedsim login --url" in result.err
        assert other.asked == []


def test_a_file_with_a_token_alone_goes_with_the_address_from_the_environment(
    web: Web, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(web.token("bob"), encoding="utf-8")
    file.chmod(0o600)
    monkeypatch.setenv("FEDSIM_URL", web.url)
    monkeypatch.setenv("FEDSIM_TOKEN_FILE", str(file))
    assert terminal.run("tasks").code == 0


def test_a_token_that_the_web_does_not_know_exits_77(web: Web, terminal: Terminal) -> None:
    terminal.use(web.url, "fedsim_nonsense")
    result = terminal.run("tasks")
    assert result.code == 77
    assert "fedsim login" in result.err
    assert terminal.run("logout").code == 0


def test_a_web_that_is_not_there_exits_69(web: Web, terminal: Terminal) -> None:
    terminal.use(web.url, "fedsim_token")
    web.stop()
    result = terminal.run("tasks", "--json")
    assert result.code == 69
    assert web.url in result.err
    assert result.document["exit_code"] == 69


def test_a_database_that_does_not_answer_exits_75(web: Web, terminal: Terminal) -> None:
    assert log_in(web, terminal) == 0
    web.site.store.close()
    database = web.site.folder / "fedsim.db"
    database.rename(database.with_suffix(".away"))
    assert terminal.run("tasks").code == 75


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n<p>hello", b"HTTP/1.1 404 No\r\n\r\n", b"220 smtp\r\n"])
def test_what_is_not_our_web_exits_69(terminal: Terminal, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        terminal.use(f"http://127.0.0.1:{listener.getsockname()[1]}", "fedsim_token")
        result = terminal.run("tasks")
        thread.join()
    assert result.code == 69, result.err
    assert "check the address" in result.err


def test_a_wrong_command_line_exits_64(terminal: Terminal) -> None:
    for arguments in (("fly",), ("show",), ("show", "zero"), ("show", "1", "--colour"), ("login", "--password-stdin")):
        assert terminal.run(*arguments).code == 64
    result = terminal.run("show", "--json", "zero")
    assert result.code == 64
    assert result.document["exit_code"] == 64


def test_help_shows_the_exit_codes_and_needs_neither_database_nor_numbers() -> None:
    program = (
        "import sys; from fedsim.cli.main import main; code = main(['--help']); "
        "heavy = {'torch', 'numpy', 'sqlalchemy', 'pydantic', 'sklearn'} & set(sys.modules); "
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    for code in (0, 1, 64, 65, 66, 69, 70, 75, 77, 78, 130):
        assert f"  {code}  " in ended.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["['--version']", "['show', 'zero', '--json']"])
def test_a_reader_that_has_gone_gets_no_complaint(command: str, unbuffered: str) -> None:
    program = f"import sys; from fedsim.cli.main import main; sys.stdin.read(); sys.exit(main({command}))"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert b"Traceback" not in (told := process.stderr.read())
        assert b"Broken pipe" not in told
