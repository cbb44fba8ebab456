"""The address of the database: an SQLAlchemy URL, checked before anybody connects."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import URL


def parse_url(text: str) -> URL:
    """Check a database's address, and fill in the driver.

    Raises:
        ValueError: if it is no address of a database that fedsim knows, or holds a password; with what would be right.
    """
    from sqlalchemy import exc, make_url  # noqa: PLC0415 - receiver and client read their files without it

    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError) as error:
        raise ValueError("is not an SQLAlchemy URL such as sqlite:////var/lib/fedsim/fedsim.db") from error
    if url.password is not None or any("passw" in key for key in url.query):
        raise ValueError("must not hold a password: name its file as database_password_file")
    match url.get_backend_name():
        case "sqlite":
            if not url.database or url.database == ":memory:" or url.query:
                raise ValueError("sqlite needs the path of a file, as sqlite:////var/lib/fedsim/fedsim.db")
            return url.set(drivername="sqlite+pysqlite")
        case "mysql" | "mariadb":
            if not url.database:
                raise ValueError("mysql needs the name of a database, as mysql://user@host/fedsim")
            return url.set(drivername="mysql+pymysql")
        case other:
            raise ValueError(f"{other} is not a database that fedsim knows: take sqlite or mysql")


def checked_url(text: str) -> str:
    """The address as it was given, if it is one."""
    parse_url(text)
    return text
