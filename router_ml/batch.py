"""A batch of entries, written inside one transaction, each entry at most once.

A batch is first written as if every entry were new, with statements that touch a row only where it is as expected; if
the counts say otherwise (a COMMIT whose answer was lost, a row that another process called interrupted, one row the
database refuses), it is rolled back and written entry by entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from router_ml.entries import Entry, Finish, Start
from router_ml.schema import SPEND_LOCK
from router_ml.statements import POISON, Statements, reason


class NotAllNewError(Exception):
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


class Batch:
    """How one writer writes entries through one driver. ``connection`` is the driver's own, in a transaction."""

    def __init__(self, driver: Any, statements: Statements, writer_id: str, *, lock_spend: bool) -> None:
        """``driver``: a PEP 249 module. ``lock_spend``: other writers may be in a transaction too (PostgreSQL)."""
        self._sql, self._writer_id, self._lock_spend = statements, writer_id, lock_spend
        self.refused_by_database: tuple[type[Exception], ...] = (driver.IntegrityError, driver.DataError, *POISON)

    def as_new(self, connection: Any, entries: Sequence[Entry]) -> Applied:
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
                raise NotAllNewError
            charged = finish.charged_nanousd(finish.reserved_nanousd)
            updates.append((*_ended(finish, charged), finish.reserved_nanousd))
            _add(charges, finish.day, charged - finish.reserved_nanousd)
        self._many(connection, self._sql.finish_new, updates)
        self._many(connection, self._sql.attempt, [row for finish in finishes for row in finish.attempts])
        self._charge(connection, charges)
        return applied

    def _admitted(self, connection: Any, starts: list[tuple[int, Start]], applied: Applied) -> list[tuple[int, Start]]:
        """The starts that fit under their ceilings; no other writer can be deciding the same at this moment."""
        if self._lock_spend:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (SPEND_LOCK,))
        charged: dict[str, int] = {}
        admitted = []
        for i, start in starts:
            if start.day not in charged:
                charged[start.day] = int(connection.execute(self._sql.day, (start.day,)).fetchone()[0])
            total = charged[start.day] + start.reserved_nanousd
            if start.ceiling_nanousd is not None and total > start.ceiling_nanousd:
                applied.refused[i] = Refused(charged[start.day], self._open_nanousd(connection, start.day))
                continue
            charged[start.day] = total
            admitted.append((i, start))
        return admitted

    def one_by_one(self, connection: Any, entries: Sequence[Entry]) -> Applied:
        """Each entry on its own, so that one the database refuses does not take the others with it."""
        applied = Applied()
        for i, entry in enumerate(entries):
            connection.execute("SAVEPOINT entry")
            try:
                if isinstance(entry, Start):
                    self._start_once(connection, i, entry, applied)
                else:
                    self._finish_once(connection, i, entry, applied)
            except self.refused_by_database as exc:
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
            raise NotAllNewError

    def _charge(self, connection: Any, charges: dict[str, int]) -> None:
        for day, nanousd in charges.items():
            if nanousd:
                connection.execute(self._sql.charge, (day, self._writer_id, nanousd))

    def _open_nanousd(self, connection: Any, day: str) -> int:
        """The part of the day's charges that is reserved by open requests."""
        row = connection.execute(self._sql.day_open, (f"{day} 00:00:00", f"{day} 23:59:59.999999")).fetchone()
        return int(row[0])


def _ended(finish: Finish, charged_nanousd: int) -> tuple[Any, ...]:
    return (finish.status, finish.finished_at, finish.cost_nanousd, charged_nanousd, finish.request_id)


def _add(charges: dict[str, int], day: str, nanousd: int) -> None:
    charges[day] = charges.get(day, 0) + nanousd
