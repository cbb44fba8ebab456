"""What nginx adds to the web: headers of its own error pages, and no redirect of programs to HTTPS."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2

from fedsim.web.app import HEADERS

TEMPLATE = Path(__file__).parents[2] / "ansible" / "roles" / "web" / "templates" / "nginx.conf.j2"


def sites() -> list[str]:
    """The two sites: of port 80 and of port 443."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 - no HTML
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        fedsim_https_certificate="/etc/fedsim/pki/https.crt", fedsim_https_key="/etc/fedsim/pki/https.key"
    )
    return re.split(r"^server \{$", text, flags=re.MULTILINE)[1:]


def test_nginx_speaks_only_the_newest_tls_and_resumes_no_session() -> None:
    site = sites()[1]
    assert "ssl_protocols TLSv1.3;" in site
    assert "ssl_session_tickets off;" in site


def test_every_answer_over_https_has_the_header_that_keeps_browsers_there() -> None:
    site = sites()[1]
    assert 'add_header Strict-Transport-Security "max-age=31536000; includeSubDomains" always;' in site
    assert "proxy_hide_header Strict-Transport-Security;" in site


def test_pages_of_nginx_itself_are_neither_guessed_at_nor_framed() -> None:
    for site in sites():
        assert "add_header X-Content-Type-Options nosniff always;" in site
        policy = re.search(r'add_header Content-Security-Policy "(.+)" always;', site)
        assert policy
        assert all(part in HEADERS["Content-Security-Policy"] for part in policy[1].split("; "))
        assert "add_header" not in site.split("location")[1], "it would hide those of the site"


def test_a_program_that_forgets_https_is_refused_not_redirected() -> None:
    plain, secure = sites()
    api, rest = plain.split("location /api/ {")[1].split("location / {")
    assert "return 403" in api
    assert "return 301 https://" in rest
    assert "return 301" not in secure


def test_the_address_of_a_browser_cannot_be_made_up() -> None:
    site = sites()[1]
    for header, value in (("For", "$remote_addr"), ("Proto", "https"), ("Host", "$host")):
        assert f"proxy_set_header X-Forwarded-{header} {value};" in site


def test_nginx_serves_no_files_and_names_no_version() -> None:
    for site in sites():
        assert "server_tokens off;" in site
        assert not re.search(r"^\s*(root|alias|autoindex|proxy_cache)\b", site, re.MULTILINE)
    assert re.findall(r"proxy_pass (\S+);", "".join(sites())) == ["http://127.0.0.1:8080"]
