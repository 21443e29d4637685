"""The connection that writes a ledger: batches of entries, each batch one transaction, each entry at most once.

Statements go straight to the driver: SQLAlchemy's cost per call is more than SQLite's per commit. A batch is first
written as if every entry were new, with statements that touch a row only where it is as expected; if the counts say
otherwise (a COMMIT whose answer was lost, a row that another process called interrupted, one row the database refuses),
it is rolled back and written entry by entry.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import sqlalchemy as sa

from router_ml.entries import Entry, Finish, Start, timestamp
from router_ml.process import HEARTBEAT_S, Writer
from router_ml.schema import SPEND_LOCK
from router_ml.statements import POISON, Statements, reason

_BUSY_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's SQLSTATE
_MAX_NAP_S = 0.02
_LEAST_PATIENCE_MS = 20

Work: TypeAlias = Callable[[Any, Sequence[Entry]], "Applied"]


class StoreUnavailable(Exception):  # noqa: N818 - private to the ledger's modules
    """The batch may not be written; ``busy`` where another writer merely holds the lock."""

    def __init__(self, reason: str, *, busy: bool = False) -> None:
        super().__init__(reason)
        self.busy = busy


class _NotAllNewError(Exception):
    """Some row was not as a batch of new entries expects it."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A start that the ceiling left no room for."""

    charged_nanousd: int
    open_nanousd: int


@dataclass(slots=True)
class Applied:
    """What became of a batch, by the entry's index; what is in neither was committed."""

    refused: dict[int, Refused] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)


class Store:
    """Not thread-safe: the group commit's lock guards it."""

    def __init__(self, engine: sa.Engine, path: Path | None, writer: Writer) -> None:
        """``path``: the SQLite file, None for PostgreSQL."""
        self._engine, self._writer = engine, writer
        self._path = None if path is None else str(path)
        self._file: tuple[int, int] | None = None
        self._connection: Any = None
        self._seen_s: float | None = None
        driver: Any = engine.dialect.dbapi  # a PEP 249 module
        self._driver_error: type[Exception] = driver.Error
        self._refused_by_database: tuple[type[Exception], ...] = (driver.IntegrityError, driver.DataError, *POISON)
        self._one_by_one_after = (_NotAllNewError, *self._refused_by_database)
        mark = "?" if path is not None else "%s"
        self._sql = Statements(mark, lock_rows=path is None)

    def apply(self, entries: Sequence[Entry], patience_s: float) -> Applied:
        """Commit ``entries`` in their order, waiting at most about ``patience_s`` for another writer.

        Raises StoreUnavailable where nothing was committed, or nobody knows whether it was: apply them again later.
        """
        try:
            return self._transaction(self._as_new, entries, patience_s)
        except self._one_by_one_after:
            return self._transaction(self._one_by_one, entries, patience_s)

    def open_nanousd(self, day: str) -> tuple[int, int]:
        """What the day's requests are charged, and the part of it that is reserved by open ones."""
        connection = self._connected()
        row = connection.execute(self._sql.day, (day,)).fetchone()
        opened = connection.execute(self._sql.day_open, (f"{day} 00:00:00", f"{day} 23:59:59.999999")).fetchone()
        return int(row[0]), int(opened[0])

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
                self._connection.execute(self._sql.is_ledger)
                self._file = (status.st_dev, status.st_ino)
        return self._connection

    def _begin(self, connection: Any, patience_s: float) -> None:
        if self._path is None:
            patience_ms = max(_LEAST_PATIENCE_MS, round(patience_s * 1_000))  # 0 would be for ever
            connection.execute(f"BEGIN; SET LOCAL lock_timeout = {patience_ms}")
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

    def _as_new(self, connection: Any, entries: Sequence[Entry]) -> Applied:
        applied = Applied()
        starts = [(i, entry) for i, entry in enumerate(entries) if isinstance(entry, Start)]
        finishes = [entry for entry in entries if isinstance(entry, Finish)]
        charges: dict[str, int] = {}
        if any(start.ceiling_nanousd is not None for _, start in starts):
            starts = self._admitted(connection, starts, applied)
        for _, start in starts:
            _add(charges, start.day, start.reserved_nanousd)
        self._many(connection, self._sql.start, [start.row for _, start in starts])
        updates = []
        for finish in finishes:
            if finish.day is None or finish.reserved_nanousd is None:
                raise _NotAllNewError
            charged = finish.charged_nanousd(finish.reserved_nanousd)
            updates.append((*_ended(finish, charged), finish.reserved_nanousd))
            _add(charges, finish.day, charged - finish.reserved_nanousd)
        self._many(connection, self._sql.finish_new, updates)
        self._many(connection, self._sql.attempt, [row for finish in finishes for row in finish.attempts])
        self._charge(connection, charges)
        return applied

    def _admitted(self, connection: Any, starts: list[tuple[int, Start]], applied: Applied) -> list[tuple[int, Start]]:
        """The starts that fit under their ceilings; no other writer can be deciding the same at this moment."""
        if self._path is None:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (SPEND_LOCK,))
        charged: dict[str, int] = {}
        admitted = []
        for i, start in starts:
            if start.day not in charged:
                charged[start.day] = int(connection.execute(self._sql.day, (start.day,)).fetchone()[0])
            total = charged[start.day] + start.reserved_nanousd
            if start.ceiling_nanousd is not None and total > start.ceiling_nanousd:
                applied.refused[i] = Refused(charged[start.day], self.open_nanousd(start.day)[1])
                continue
            charged[start.day] = total
            admitted.append((i, start))
        return admitted

    def _one_by_one(self, connection: Any, entries: Sequence[Entry]) -> Applied:
        """Each entry on its own, so that one the database refuses does not take the others with it."""
        applied = Applied()
        for i, entry in enumerate(entries):
            connection.execute("SAVEPOINT entry")
            try:
                if isinstance(entry, Start):
                    self._start_once(connection, i, entry, applied)
                else:
                    self._finish_once(connection, i, entry, applied)
            except self._refused_by_database as exc:
                connection.execute("ROLLBACK TO SAVEPOINT entry")
                applied.dropped[i] = reason(exc)
            connection.execute("RELEASE SAVEPOINT entry")
        return applied

    def _start_once(self, connection: Any, i: int, start: Start, applied: Applied) -> None:
        if connection.execute(self._sql.state, (start.request_id,)).fetchone() is not None:
            return  # it was committed before, with its reservation
        if start.ceiling_nanousd is not None and not self._admitted(connection, [(i, start)], applied):
            return
        if connection.execute(self._sql.start, start.row).rowcount == 1:
            self._charge(connection, {start.day: start.reserved_nanousd})

    def _finish_once(self, connection: Any, i: int, finish: Finish, applied: Applied) -> None:
        state = connection.execute(self._sql.state, (finish.request_id,)).fetchone()
        if state is None:
            if finish.attempts:
                applied.dropped[i] = f"request {finish.request_id[:32]} is not in the ledger"
            return
        status, before, started_at = state[0], int(state[1]), str(state[2])
        if status not in ("started", "interrupted"):
            return  # it was committed before
        charged = finish.charged_nanousd(before)
        connection.execute(self._sql.finish, _ended(finish, charged))
        self._many(connection, self._sql.attempt, finish.attempts, expect_all=False)
        self._charge(connection, {started_at[:10]: charged - before})

    def _many(self, connection: Any, statement: str, rows: Sequence[Any], *, expect_all: bool = True) -> None:
        if not rows:
            return
        cursor = connection.cursor()
        if len(rows) == 1:
            cursor.execute(statement, rows[0])
        else:
            cursor.executemany(statement, rows)
        if expect_all and cursor.rowcount != len(rows):
            raise _NotAllNewError

    def _charge(self, connection: Any, charges: dict[str, int]) -> None:
        for day, nanousd in charges.items():
            if nanousd:
                connection.execute(self._sql.charge, (day, self._writer.writer_id, nanousd))

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


def _ended(finish: Finish, charged_nanousd: int) -> tuple[Any, ...]:
    return (finish.status, finish.finished_at, finish.cost_nanousd, charged_nanousd, finish.request_id)


def _add(charges: dict[str, int], day: str, nanousd: int) -> None:
    charges[day] = charges.get(day, 0) + nanousd
