"""A MariaDB of the tests' own, and where a database is."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pymysql
import pytest

from fedsim.store import Store, open_store
from fedsim.testing.ports import free_port

USER = "fedsim"
START_SECONDS = 60.0
ATTEMPT_SECONDS = 0.05
NOT_YET = {2003, 2006, 2013}  # refused, or cut off while it starts


def program(name: str) -> str | None:
    """The path of a program; Debian installs servers outside of a regular user's PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


@dataclass
class MariaDb:
    """A MariaDB server of our own: private folder, private port on loopback, one account with a password."""

    folder: Path
    password: str
    port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def password_file(self) -> Path:
        return self.folder / "password"

    def url(self, database: str) -> str:
        return f"mysql+pymysql://{USER}@127.0.0.1:{self.port}/{database}"

    def install(self) -> None:
        """Make the data folder; the account comes with the first start."""
        self.password_file.write_text(self.password + "\n", encoding="utf-8")
        account = f"'{USER}'@'127.0.0.1'"
        (self.folder / "accounts.sql").write_text(
            f"CREATE USER IF NOT EXISTS {account} IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL ON *.* TO {account} WITH GRANT OPTION;\n",
            encoding="utf-8",
        )
        command = [
            str(program("mariadb-install-db")),
            "--no-defaults",
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
            f"--datadir={self.folder / 'data'}",
            *self._account(),
        ]
        subprocess.run(command, check=True, capture_output=True)

    def _account(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        shutil.chown(self.folder, "mysql")  # it refuses to run as root
        return ["--user=mysql"]

    def start(self) -> None:
        """Start, on the port of the last time if there was one, and return when it takes connections."""
        first = self.port == 0
        for _ in range(5):
            self.port = free_port() if first else self.port
            if self._started():
                return
        log = (self.folder / "error.log").read_text(encoding="utf-8", errors="replace")
        pytest.fail(f"mariadbd did not start on port {self.port}:\n{log[-4000:]}")

    def _started(self) -> bool:
        command = [
            str(program("mariadbd")),
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            f"--log-error={self.folder / 'error.log'}",
            f"--init-file={self.folder / 'accounts.sql'}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--performance-schema=OFF",
            "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=8M",
            "--innodb-flush-log-at-trx-commit=2",  # survives kill -9, which is all that tests do to it
            *self._account(),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(int(START_SECONDS / ATTEMPT_SECONDS)):
            try:
                self.connect().close()
            except pymysql.err.OperationalError as error:
                if error.args[0] not in NOT_YET:
                    raise
                try:
                    self.process.wait(ATTEMPT_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
                return False  # it ended: another process took the port
            return True
        self.kill()
        return False

    def connect(self) -> pymysql.Connection[pymysql.cursors.Cursor]:
        password = self.password.encode()  # as text it would travel in Latin-1
        return pymysql.connect(host="127.0.0.1", port=self.port, user=USER, password=password, autocommit=True)

    def execute(self, statement: str) -> None:
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def new_database(self) -> str:
        """An empty database; returns its name."""
        name = f"fedsim_{uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def kill(self) -> None:
        """End it without a chance to tidy up."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Place:
    """Where a database is: what `open_store` takes."""

    url: str
    password_file: Path | None

    def open(self) -> Store:
        return open_store(self.url, self.password_file)
