"""The two databases a ledger runs on: SQLite in a temporary folder, and a real PostgreSQL server of this test run."""

import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of a server's database, on a unix socket in a temporary folder; fsync is off, since tests kill backends and
    not the machine."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server binaries on PATH or in /usr/lib/postgresql")
    pytest.importorskip("psycopg")
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="ledger-pg-", dir="/tmp"))  # short: a socket's path has 107 characters
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    init = [binaries / "initdb", "-D", data, "-A", "trust", "-U", "router", "--no-sync", "-E", "UTF8", "--locale=C"]
    server = None
    try:
        subprocess.run(init, check=True, capture_output=True, user=user, cwd=folder)
        options = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off", "max_connections": 60}
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([binaries / "postgres", "-D", data, *flags], stderr=log, user=user, cwd=folder)
        url = f"postgresql+psycopg://router@/postgres?host={folder}"
        _wait_until_ready(url, server)
        yield url
    finally:
        if server is not None:
            server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            server.wait()
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database that holds nothing yet."""
    monkeypatch.chdir(tmp_path)  # where a PostgreSQL ledger's spool is kept
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return emptied(request.getfixturevalue("postgresql_server"))


@pytest.fixture
def postgresql_url(postgresql_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """``database_url`` where only PostgreSQL has the behaviour."""
    monkeypatch.chdir(tmp_path)
    return emptied(postgresql_server)


def emptied(url: str) -> str:
    """The server's one database, with nothing in it and nobody in it; a new one a test would cost ten times that."""
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return url


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Another program holds the database."""
    if url.startswith("sqlite"):
        other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
        other.close()
        return
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "")) as server:
        server.execute("LOCK TABLE requests IN EXCLUSIVE MODE")
        yield
        server.rollback()


def _binaries() -> Path | None:
    found = shutil.which("postgres")
    folders = (
        [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    return next((f for f in folders if (f / "postgres").is_file() and (f / "initdb").is_file()), None)


def _unprivileged() -> str | None:
    """The server refuses to run as root."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in users), None)


def _wait_until_ready(url: str, server: "subprocess.Popen[bytes]") -> None:
    import psycopg

    for _ in range(600):
        try:
            psycopg.connect(url.replace("+psycopg", "")).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None, "the PostgreSQL server ended"
            time.sleep(0.05)
    raise TimeoutError("the PostgreSQL server does not answer")
