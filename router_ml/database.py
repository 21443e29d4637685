"""A ledger's database: found or made, brought to today's schema, or refused by name.

A SQLite file is made whole under another name and linked into place, and otherwise only ever opened, never created: a
ledger that was deleted, emptied or truncated is an error, not a fresh start.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import sqlalchemy as sa

from router_ml import schema
from router_ml.errors import LedgerError
from router_ml.statements import reason

Synchronous = Literal["NORMAL", "FULL"]
BUSY_TIMEOUT_S = 5.0  # of everything but requests: opening, outcomes, pruning
_LOCK_TIMEOUT = f"SET LOCAL lock_timeout = {BUSY_TIMEOUT_S * 1_000:.0f}"  # PostgreSQL's


@dataclass(frozen=True, slots=True)
class Database:
    """``path`` is the SQLite file, None for PostgreSQL; ``name`` is the URL without its password."""

    engine: sa.Engine
    path: Path | None
    name: str

    @property
    def fingerprint(self) -> str:
        """Tells this database's spools from another's."""
        what = self.name if self.path is None else self.path.name
        return hashlib.sha256(what.encode()).hexdigest()[:12]

    @property
    def default_spool(self) -> Path:
        """Beside the SQLite file; for PostgreSQL ./router-spool, as the default ledger is ./router.db."""
        return Path("router-spool").absolute() if self.path is None else self.path.with_name(f"{self.path.name}-spool")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One snapshot. Raises LedgerError where the database cannot be read."""
        with self._reported(), self.engine.connect() as connection:
            if self.path is None:
                connection.execution_options(isolation_level="REPEATABLE READ")
                connection.exec_driver_sql(_LOCK_TIMEOUT)
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction that no other writer is in. Raises LedgerError where the database cannot be written."""
        with self._reported(), _transaction(self.engine) as connection:
            yield connection

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as exc:
            raise LedgerError(f"the ledger {self.name} cannot be used: {reason(exc)}") from None


def open_database(url: str, *, create: bool, synchronous: Synchronous = "NORMAL") -> Database:
    """Connect and migrate. Raises LedgerError where that cannot be done, or there is no ledger and ``create`` is not
    set."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise LedgerError("the ledger's database is no SQLAlchemy URL; sqlite:///router.db is one") from None
    name = parsed.render_as_string(hide_password=True)
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise LedgerError(f"the ledger {name} is neither SQLite nor PostgreSQL")
    try:
        database = _sqlite(parsed, name, synchronous, create) if backend == "sqlite" else _postgresql(parsed, name)
        _migrate(database, create)
    except ModuleNotFoundError as exc:
        raise LedgerError(
            f"the ledger's database needs the package {exc.name!r}: pip install 'router-ml[postgres]'"
        ) from None
    except LedgerError as exc:
        raise LedgerError(f"the ledger {name} cannot be opened: {exc}") from None
    except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as exc:
        raise LedgerError(f"the ledger {name} cannot be opened: {reason(exc)}") from None
    return database


def _migrate(database: Database, create: bool) -> None:
    try:
        _migrate_where_needed(database, create)
    except BaseException:
        database.engine.dispose()
        raise


def _migrate_where_needed(database: Database, create: bool) -> None:
    """Reads first: opening a ledger that is up to date waits for no writer."""
    with database.engine.connect() as connection:
        found = schema.version(connection)
    schema.refuse_newer(found)
    if found == 0 and (database.path is not None or not create):
        raise LedgerError("it holds no ledger")  # a SQLite file is made with its tables
    if found != schema.VERSION:
        with _transaction(database.engine) as connection:
            schema.migrate(connection)


@contextlib.contextmanager
def _transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.connect() as connection:
        connection.execution_options(begin_immediate=True)
        with connection.begin():
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(_LOCK_TIMEOUT)
            yield connection


def _postgresql(url: sa.URL, name: str) -> Database:
    # A server that has fallen silent is noticed within seconds, unless the URL says otherwise.
    silence = {"connect_timeout": 3, "tcp_user_timeout": 3_000, "keepalives_idle": 3, "keepalives_interval": 2}
    wanted = {key: value for key, value in silence.items() if key not in url.query}
    return Database(sa.create_engine(url, pool_pre_ping=True, hide_parameters=True, connect_args=wanted), None, name)


def _sqlite(url: sa.URL, name: str, synchronous: Synchronous, create: bool) -> Database:
    if not url.database or url.database == ":memory:" or url.query:
        raise LedgerError("a ledger is a file: sqlite:///router.db")
    path = Path(url.database).absolute()
    if create and not path.exists():
        _make(path)
    if not path.exists():
        raise LedgerError("there is no such file")
    if create and not os.access(path, os.W_OK):
        raise LedgerError("the file is read-only")
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise LedgerError("the file is empty. If that is right, remove it and a new one is made")
    _refuse_truncated(path, size_bytes)
    return Database(_sqlite_engine(path, synchronous), path, name)


def _sqlite_engine(path: Path, synchronous: Synchronous) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        if path.is_file() and path.stat().st_size == 0:  # SQLite would begin a new database in it
            raise sqlite3.OperationalError("the file is empty")
        address = f"file:{quote(path.as_posix())}?mode=rw"  # never made by opening it
        connection = sqlite3.connect(
            address, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S
        )
        _use_wal(connection)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.QueuePool, hide_parameters=True)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """SQLite does not wait for other openers here, whatever its busy time-out: so we do."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                connection.close()
                raise
        time.sleep(0.005)


def _begin(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("begin_immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _make(path: Path) -> None:
    """The whole file at once: no other opener sees one without tables, and of two makers one loses."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.touch(mode=0o600 if os.name == "posix" else 0o666)  # rows hold prompts
    try:
        engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(temporary), poolclass=sa.NullPool)
        with engine.begin() as connection:
            schema.migrate(connection)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_truncated(path: Path, size_bytes: int) -> None:
    """The header counts the pages of the file as it was last checkpointed; a file with fewer has lost some, which
    SQLite itself would only notice on reaching them."""
    with path.open("rb") as file:
        header: bytes = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise LedgerError("the file is not a SQLite database, or is damaged")
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65_536 if page_bytes == 1 else page_bytes
    pages = int.from_bytes(header[28:32], "big")
    if header[24:28] == header[92:96] and size_bytes < pages * page_bytes:
        raise LedgerError(f"the file is truncated: {size_bytes} bytes of {pages * page_bytes}")
