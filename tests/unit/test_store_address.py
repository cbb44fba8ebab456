"""Which database addresses are taken, and how they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fedsim.config.database import parse_url
from fedsim.errors import EX_CONFIG, ConfigError
from fedsim.store import open_store
from fedsim.store.connections import shown

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "not an SQLAlchemy URL"),
        ("/var/lib/fedsim/fedsim.db", "not an SQLAlchemy URL"),
        ("mysql://host:port/fedsim", "not an SQLAlchemy URL"),
        ("sqlite://", "needs the path of a file"),
        ("sqlite:///:memory:", "needs the path of a file"),
        ("sqlite:///fedsim.db?mode=ro", "needs the path of a file"),
        ("mysql://fedsim@host", "needs the name of a database"),
        ("postgresql://fedsim@host/fedsim", "postgresql is not a supported database"),
        ("mysql://fedsim:s3cret@host/fedsim", "must not contain a password"),
        ("mysql://fedsim@host/fedsim?password=s3cret", "must not contain a password"),
        ("mysql://fedsim@host/fedsim?passwd=s3cret", "must not contain a password"),
        ("mysql://fedsim@host/fedsim?ssl_key_password=s3cret", "must not contain a password"),
    ],
)
def test_an_address_that_cannot_be_used_is_a_configuration_error(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        open_store(url)
    assert caught.value.exit_code == EX_CONFIG
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "driver", "text"),
    [
        ("sqlite:////var/lib/fedsim/fedsim.db", "sqlite+pysqlite", "/var/lib/fedsim/fedsim.db"),
        ("mysql://fedsim@db.lab/fedsim", "mysql+pymysql", "fedsim at fedsim@db.lab:3306"),
        ("mariadb://db.lab:3307/lab", "mysql+pymysql", "lab at db.lab:3307"),
        ("mysql+pymysql:///lab?unix_socket=/run/mysqld.sock", "mysql+pymysql", "lab at /run/mysqld.sock"),
    ],
)
def test_an_address_gets_its_driver_and_is_shown_without_it(url: str, driver: str, text: str) -> None:
    parsed = parse_url(url)
    assert parsed.drivername == driver
    assert shown(parsed) == text


def test_a_password_file_that_cannot_be_read_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path / 'absent'} cannot be read"):
        open_store("mysql://fedsim@host/fedsim", tmp_path / "absent")
