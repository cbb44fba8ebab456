from __future__ import annotations

from pathlib import Path

import pytest

from fedsim.cli.credentials import ApiCredentials, choose_url, clean_url, read_credentials, write_credentials
from fedsim.errors import BadInput, Refused

TOKEN = "fedsim_abc"


def test_what_is_written_is_read_and_no_one_else_can_read_it(tmp_path: Path) -> None:
    written = ApiCredentials(TOKEN, "https://lab.example", tmp_path / "new" / "token")
    write_credentials(written)
    assert read_credentials(written.path) == written
    assert written.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "a b\n", "x\ny\nz\n", "tök\n", "http://\nfedsim_abc\n", "fed\x1bsim\n"])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(BadInput):
        read_credentials(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN, encoding="utf-8")
    path.chmod(mode)
    with pytest.raises(Refused, match="chmod 600"):
        read_credentials(path)


def test_an_address_loses_its_last_slash() -> None:
    assert clean_url(" https://lab.example/fedsim/ ") == "https://lab.example/fedsim"


@pytest.mark.parametrize(
    "text", ["lab.example", "ftp://lab.example", "http://", "http://a:b@lab.example", "http://lab:x", "http://lab?x=1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="address of a web"):
        clean_url(text)


def choose(url: str | None, kept: str | None, *, insecure: bool = False) -> str:
    return choose_url(ApiCredentials(TOKEN, kept, Path("token")), url, insecure_plaintext=insecure)


def test_a_token_goes_where_it_belongs() -> None:
    assert choose(None, "http://lab.example") == "http://lab.example"
    assert choose("http://lab.example/", "http://lab.example") == "http://lab.example"
    with pytest.raises(Refused, match="belongs to"):
        choose("https://elsewhere.example", "http://lab.example", insecure=True)


def test_a_token_goes_unencrypted_only_to_this_machine_or_where_the_user_insists() -> None:
    assert choose("http://127.0.0.1:8080", None) == "http://127.0.0.1:8080"
    assert choose("https://lab.example", None) == "https://lab.example"
    with pytest.raises(Refused, match="not encrypted"):
        choose("http://lab.example", None)
    assert choose("http://lab.example", None, insecure=True) == "http://lab.example"
