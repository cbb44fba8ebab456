"""Where the database is: its URL is validated when the configuration is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from fedsim.config.fields import Secret, StrictModel

if TYPE_CHECKING:
    from sqlalchemy import URL


def parse_url(text: str) -> URL:
    """Validate a database URL, and set its driver.

    Raises:
        ValueError: it is not the URL of a supported database, or it contains a password; the text says what is valid.
    """
    from sqlalchemy import exc, make_url  # noqa: PLC0415 - receiver and client do not need it

    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError) as error:
        raise ValueError("is not an SQLAlchemy URL such as sqlite:////var/lib/fedsim/fedsim.db") from error
    if url.password is not None or any("passw" in key for key in url.query):
        raise ValueError("must not contain a password: use database_password_file")
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
            raise ValueError(f"{other} is not a supported database (available: sqlite, mysql)")


def checked_url(text: str) -> str:
    """Return the URL unchanged if it is valid."""
    parse_url(text)
    return text


class DatabaseKeys(StrictModel):
    """Where the database is."""

    database: Annotated[str, AfterValidator(checked_url)] = Field(
        "sqlite:////var/lib/fedsim/fedsim.db", description="An SQLAlchemy URL without a password"
    )
    database_password_file: Secret | None = Field(
        None, description="File with the password: an absolute path, or the name of a credential"
    )
