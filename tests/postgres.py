"""A real PostgreSQL of the tests' own: on a Unix socket in a directory of its own, killed and started at will."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

USER = "tollseal"
START_TIMEOUT_SECONDS = 60


class PostgresMissingError(Exception):
    """This machine has no PostgreSQL server to start, or no unprivileged user to run it as."""


class Postgres:
    """One server. Its clients authenticate with a password, as they would anywhere else.

    `start` after `stop` or `kill` finds the same data at the same address.

    Args:
        options: server settings, such as ``fsync=off``.

    Raises:
        PostgresMissingError: there is no `initdb` on PATH or where Debian keeps it.
    """

    def __init__(self, *options: str) -> None:
        self._programs = programs()
        self._user = _unprivileged()
        self.password = secrets.token_hex(16)
        self._options = [word for option in options for word in ("-c", option)]
        # Not below pytest's own directory: only root may enter that one.
        self._directory = Path(tempfile.mkdtemp(prefix="tollseal-pg-"))
        self._process: subprocess.Popen[str] | None = None
        if self._user is not None:
            os.chown(self._directory, self._user, -1)
        secret = self._directory / "password"
        secret.write_text(self.password)
        if self._user is not None:
            os.chown(secret, self._user, -1)
        init = ["--auth=scram-sha-256", f"--pwfile={secret}", f"--username={USER}", "--no-sync", "--encoding=UTF8"]
        command: list[str | Path] = [self._programs / "initdb", "-D", self._data, "--locale=C", *init]
        subprocess.run(command, user=self._user, cwd=self._directory, check=True, capture_output=True)

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        where: list[str | Path] = ["-D", self._data, "-k", self._directory, "-c", "listen_addresses="]
        self._process = subprocess.Popen(
            [self._programs / "postgres", *where, *self._options],
            user=self._user,
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,  # Ctrl-C is for the tests
        )
        ready, said = threading.Event(), list[str]()

        def listen(process: subprocess.Popen[str]) -> None:
            assert process.stderr is not None
            with process.stderr as lines:
                for line in lines:
                    said.append(line)
                    if "ready to accept connections" in line:
                        ready.set()
            ready.set()

        threading.Thread(target=listen, args=(self._process,), daemon=True).start()
        assert ready.wait(START_TIMEOUT_SECONDS), "PostgreSQL did not start in time"
        assert self._process.poll() is None, "".join(said)

    def stop(self) -> None:
        """Stop it in order, without waiting for clients."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL the server and everything that it has started: what is not on disk is gone."""
        assert self._process is not None
        children = _children(self._process.pid)
        self._process.kill()
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"ledger_{secrets.token_hex(6)}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://{USER}:{self.password}@/{name}?host={self._directory}"

    def drop_database(self, url: str) -> None:
        """Remove a database, whoever is still connected to it."""
        with self.connect("postgres") as connection:
            connection.execute(f"DROP DATABASE {_name(url)} WITH (FORCE)".encode())

    def connect(self, database: str) -> psycopg.Connection:
        """A connection past the product, in autocommit mode. `database` is a name or a URL of `create_database`."""
        return psycopg.connect(
            host=str(self._directory), user=USER, password=self.password, dbname=_name(database), autocommit=True
        )

    def close(self) -> None:
        """Stop it and remove its data."""
        if self._process is not None and self._process.poll() is None:
            self.kill()  # nothing of it is needed any more
        shutil.rmtree(self._directory, ignore_errors=True)

    def _end(self, number: int) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(START_TIMEOUT_SECONDS)


def programs() -> Path:
    """The directory of `initdb` and `postgres`.

    Raises:
        PostgresMissingError: there is none.
    """
    found = shutil.which("initdb")
    candidates = [Path(found).resolve().parent] if found else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for candidate in candidates:
        if (candidate / "initdb").exists() and (candidate / "postgres").exists():
            return candidate
    raise PostgresMissingError("no initdb on PATH or in /usr/lib/postgresql/*/bin (Debian: postgresql)")


def _name(database: str) -> str:
    return database.partition("?")[0].rpartition("/")[2]


def _unprivileged() -> int | None:
    """Whom to run as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    raise PostgresMissingError("PostgreSQL does not run as root, and there is neither a postgres nor a nobody")


def _children(parent: int) -> list[int]:
    """Each of its processes makes a session of its own, so that no signal to a group reaches them."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server. A test that stops it starts it again."""
    try:
        server = Postgres()
    except PostgresMissingError as error:
        if os.environ.get("CI"):
            pytest.fail(f"{error}; in CI this is not optional")
        pytest.skip(str(error))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database, removed after the test: after a kill the server looks through the files of all."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)
