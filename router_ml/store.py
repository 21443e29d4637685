"""The connection that writes a ledger: each batch of entries is one transaction on it.

Statements go straight to the driver: SQLAlchemy's cost per call is more than SQLite's per commit.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import sqlalchemy as sa

from router_ml.batch import Applied, Batch, NotAllNewError
from router_ml.entries import Entry, timestamp
from router_ml.process import HEARTBEAT_S, Writer
from router_ml.statements import Statements, reason

_BUSY_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's SQLSTATE
_MAX_NAP_S = 0.02
_MOST_LOG_PAGES = 16_000  # 64 MB; before that, the log is moved in the background
_LEAST_PATIENCE_MS = 20
_STATEMENT_MS = 5_000  # for a server that is merely slow

Work: TypeAlias = Callable[[Any, Sequence[Entry]], Applied]


class StoreUnavailable(Exception):  # noqa: N818 - named for what happened; never leaves the ledger
    """The batch may not be written; ``busy`` where another writer merely holds the lock."""

    def __init__(self, reason: str, *, busy: bool = False) -> None:
        super().__init__(reason)
        self.busy = busy


class Store:
    """Not thread-safe: the group commit's lock guards it."""

    def __init__(self, engine: sa.Engine, path: Path | None, writer: Writer) -> None:
        """``path``: the SQLite file, None for PostgreSQL."""
        self._engine, self._writer = engine, writer
        self._path = None if path is None else str(path)
        self._file: tuple[int, int] | None = None
        self._connection: Any = None
        self._seen_s: float | None = None
        driver: Any = engine.dialect.dbapi
        self._driver_error: type[Exception] = driver.Error
        self._sql = Statements("?" if path is not None else "%s", lock_rows=path is None)
        self._batch = Batch(driver, self._sql, writer.writer_id, lock_spend=path is None)
        self._one_by_one_after: tuple[type[Exception], ...] = (NotAllNewError, *self._batch.refused_by_database)

    def apply(self, entries: Sequence[Entry], patience_s: float) -> Applied:
        """Commit ``entries`` in their order, waiting at most about ``patience_s`` for another writer.

        Raises StoreUnavailable where nothing was committed, or nobody knows whether it was: apply them again later.
        """
        try:
            return self._transaction(self._batch.as_new, entries, patience_s)
        except self._one_by_one_after:
            return self._transaction(self._batch.one_by_one, entries, patience_s)

    def close(self) -> None:
        """Forget the writer where no open row needs it, and let go of the connection."""
        if self._connection is not None and self._seen_s is not None:

            def forget(connection: Any, _: Sequence[Entry]) -> Applied:
                connection.execute(self._sql.forget, (self._writer.writer_id,) * 2)
                return Applied()

            with contextlib.suppress(StoreUnavailable):  # its name stays, and whoever opens next sees that it is gone
                self._transaction(forget, (), 0.1)
        self._seen_s = None
        self._drop_connection()

    def _transaction(self, work: Work, entries: Sequence[Entry], patience_s: float) -> Applied:
        had = self._connection is not None
        try:
            return self._attempt(work, entries, patience_s)
        except StoreUnavailable as exc:
            if exc.busy or not had or self._connection is not None:
                raise
        # The server may have closed a connection that was kept: once more on a fresh one.
        return self._attempt(work, entries, patience_s)

    def _attempt(self, work: Work, entries: Sequence[Entry], patience_s: float) -> Applied:
        try:
            connection = self._connected()
            self._begin(connection, patience_s)
        except (self._driver_error, sa.exc.SQLAlchemyError, OSError) as exc:
            self._drop_connection()
            raise StoreUnavailable(reason(exc)) from None
        try:
            applied = work(connection, entries)
            self._heartbeat(connection)
            connection.execute("COMMIT")
        except self._one_by_one_after:
            self._roll_back()
            raise
        except self._driver_error as exc:
            busy = getattr(exc, "sqlstate", None) == _LOCK_NOT_AVAILABLE
            self._roll_back()
            if self._path is None and not busy:
                self._drop_connection()  # what state it is in is anyone's guess
            raise StoreUnavailable(reason(exc), busy=busy) from None
        except BaseException:
            self._roll_back()
            raise
        return applied

    def _connected(self) -> Any:
        """The driver's connection, made where there is none. The SQLite file must still be the one that was opened:
        rows written to a deleted file are lost without a sound."""
        if self._path is not None:
            status = os.stat(self._path)  # noqa: PTH116 - called for every batch: a third of Path.stat's time
            if self._file != (status.st_dev, status.st_ino):
                self._drop_connection()
        if self._connection is None:
            self._pooled = self._engine.raw_connection()
            self._connection = self._pooled.driver_connection
            if self._path is None:
                self._connection.autocommit = True  # BEGIN and COMMIT are ours, as with SQLite
                self._connection.prepare_threshold = None  # a failed pipeline forgets what it prepared; poolers too
            else:
                self._connection.execute("PRAGMA busy_timeout=0")  # we wait ourselves: see _begin
                self._connection.execute(f"PRAGMA wal_autocheckpoint={_MOST_LOG_PAGES}")
                self._connection.execute(self._sql.is_ledger)
                self._file = (status.st_dev, status.st_ino)
        return self._connection

    def _begin(self, connection: Any, patience_s: float) -> None:
        if self._path is None:
            patience_ms = max(_LEAST_PATIENCE_MS, round(patience_s * 1_000))  # 0 would be for ever
            limits = f"SET LOCAL lock_timeout = {patience_ms}; SET LOCAL statement_timeout = {_STATEMENT_MS}"
            connection.execute(f"BEGIN; {limits}")  # one round trip
            return
        deadline: float | None = None
        nap_s = 0.001
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")  # a deferred read-then-write can fail at once, whatever we wait
                return
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF not in _BUSY_CODES:  # the rest is an extended code
                    raise
                now = time.monotonic()
                deadline = now + patience_s if deadline is None else deadline
                if now >= deadline:
                    raise StoreUnavailable(reason(exc), busy=True) from None
            time.sleep(min(nap_s * (0.5 + random.random()), deadline - now))  # noqa: S311 - jitter
            nap_s = min(nap_s * 2, _MAX_NAP_S)

    def _heartbeat(self, connection: Any) -> None:
        """On the first commit, so that no open row is without a known writer, and now and then after."""
        now_s = time.monotonic()
        if self._seen_s is None or now_s - self._seen_s >= HEARTBEAT_S:
            w = self._writer
            row = (w.writer_id, w.place, w.pid, w.process_started, timestamp(datetime.now(UTC)))
            connection.execute(self._sql.seen, row)
            self._seen_s = now_s

    def _roll_back(self) -> None:
        self._seen_s = None  # the writer's own row may be what was rolled back
        if self._path is not None and not self._connection.in_transaction:
            return  # SQLite has rolled back itself, as it does when the disk is full
        try:
            self._connection.execute("ROLLBACK")
        except self._driver_error:
            self._drop_connection()

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection = self._file = None
            self._pooled.invalidate()
