"""The books: every request, every attempt and every outcome, in SQL.

A request's row is committed as ``started`` before any provider is called and completed after, so a crash leaves no
unlogged bill. Money is integer nano-USD, time is UTC, an unknown cost is NULL. If the database fails later on, the
request is still answered: its rows wait in a spool and are written, once and in order, when it is back.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from router_ml import queries
from router_ml.batch import Refused
from router_ml.checkpoint import Checkpointer
from router_ml.database import Synchronous, open_database
from router_ml.entries import NANO, Prompts, Start, finish_entry, start_entry
from router_ml.errors import InputError, LedgerError, SpendCeilingReached
from router_ml.group_commit import GroupCommit, Ticket
from router_ml.process import Writer
from router_ml.recovery import interrupt_the_dead
from router_ml.schema import OUTCOMES, REQUESTS
from router_ml.spool import MAX_BYTES, Spool, left_behind
from router_ml.store import Store, StoreUnavailable
from router_ml.types import Attempt, Decision, Outcome

PATIENCE_S = 0.5
_opened: weakref.WeakSet[Ledger] = weakref.WeakSet()
_inherited: list[object] = []  # by a forked child: what must not be closed there, not even by being forgotten


class Ledger:
    """A ledger behind an SQLAlchemy URL; safe to use from several threads, event loops and processes at once."""

    def __init__(
        self,
        url: str,
        *,
        prompts: Prompts = "full",
        synchronous: Synchronous = "NORMAL",
        spool_folder: str | Path | None = None,
        spool_bytes: int = MAX_BYTES,
        patience_s: float = PATIENCE_S,
        inspect: bool = False,
    ) -> None:
        """Open, making the tables where they are missing, and settle what dead writers left: their spools are
        written, their open rows become ``interrupted``.

        ``synchronous``: with NORMAL a commit survives the process, with FULL the power supply too, at the price of a
        disk flush each (SQLite). ``spool_folder``: where rows wait while the database fails; beside the SQLite file,
        or ./router-spool. ``patience_s``: how long a request waits for another process's lock before its row is
        spooled. ``inspect``: open what there is, and change nothing in it but its schema version.

        Raises LedgerError where that cannot be done.
        """
        self.prompts = prompts
        self.database = open_database(url, create=not inspect, synchronous=synchronous)
        self._folder = self.database.default_spool if spool_folder is None else Path(spool_folder)
        self._spool_bytes, self._patience_s = spool_bytes, patience_s
        self._begin_writing()
        if not inspect:
            try:
                self._settle_the_dead()
            except (LedgerError, StoreUnavailable) as exc:
                self.database.engine.dispose()
                raise LedgerError(f"the ledger {self.database.name} cannot be opened: {exc}") from None
        _opened.add(self)

    @property
    def dropped(self) -> int:
        """Rows that were lost because the spool was full, or because the database refuses them as such."""
        return self._commits.dropped

    @property
    def waiting(self) -> int:
        """Rows in the spool."""
        return self._commits.waiting

    def start(
        self,
        request_id: str,
        decision: Decision,
        judged_text: str,
        at: datetime,
        *,
        reserve_nanousd: int = 0,
        ceiling_nanousd: int | None = None,
    ) -> None:
        """Phase one: commit that a provider is about to be called; spooled where the database fails.

        ``reserve_nanousd`` is the most the request can cost; it counts against the day's spend until ``finish`` says
        what it did cost. With ``ceiling_nanousd`` the row is only written where the day's spend and it fit under the
        ceiling, in one transaction, so that no two processes pass it together.

        Raises:
            SpendCeilingReached: it does not fit, or the database fails, so that nobody can say.
        """
        ticket = self._start_ticket(request_id, decision, judged_text, at, reserve_nanousd, ceiling_nanousd)
        self._commits.submit(ticket)
        self._started(ticket)

    async def start_async(
        self,
        request_id: str,
        decision: Decision,
        judged_text: str,
        at: datetime,
        *,
        reserve_nanousd: int = 0,
        ceiling_nanousd: int | None = None,
    ) -> None:
        """``start`` for a running event loop. If the caller is cancelled meanwhile, the row is written all the same,
        and is the caller's to finish."""
        ticket = self._start_ticket(request_id, decision, judged_text, at, reserve_nanousd, ceiling_nanousd)
        await self._commits.submit_async(ticket)
        self._started(ticket)

    def finish(self, request_id: str, status: str, attempts: Sequence[Attempt], at: datetime) -> None:
        """Phase two: how it ended (answered, failed or interrupted), with every attempt and what it cost. Never
        raises: what cannot be written is spooled, what cannot be spooled is counted and logged."""
        started = self._open.pop(request_id, (None, None))
        self._commits.submit(Ticket(finish_entry(request_id, status, attempts, at, *started)))

    async def finish_async(self, request_id: str, status: str, attempts: Sequence[Attempt], at: datetime) -> None:
        """``finish`` for a running event loop; written even if the caller is cancelled meanwhile."""
        started = self._open.pop(request_id, (None, None))
        await self._commits.submit_async(Ticket(finish_entry(request_id, status, attempts, at, *started)))

    def spent_usd(self, day: date | None = None) -> Decimal:
        """What the requests started on ``day`` (UTC, today where None) are charged: their cost, or what is still
        reserved for them. Raises LedgerError."""
        key = (day or datetime.now(UTC).date()).isoformat()
        with self.database.reading() as connection:
            return Decimal(connection.execute(queries.charged(key)).scalar_one()) / NANO

    def add_outcome(self, outcome: Outcome) -> None:
        """Note how good an answer was; the same source's later word replaces its earlier one.

        Raises:
            InputError: score outside 0..1.
            LedgerError: no such request, or the database cannot be written.
        """
        if not 0.0 <= outcome.score <= 1.0:
            raise InputError(f"score = {outcome.score!r} is outside 0..1")
        key = (OUTCOMES.c.request_id == outcome.request_id) & (OUTCOMES.c.source == outcome.source)
        known = sa.select(REQUESTS.c.request_id).where(REQUESTS.c.request_id == outcome.request_id)
        values = {
            "request_id": outcome.request_id,
            "source": outcome.source,
            "score": outcome.score,
            "noted_at": outcome.noted_at,
        }
        with self.database.writing() as connection:
            if connection.execute(known.with_for_update()).first() is None:
                raise LedgerError(f"the ledger {self.database.name} has no request {_short(outcome.request_id)!r}")
            connection.execute(sa.delete(OUTCOMES).where(key))
            connection.execute(sa.insert(OUTCOMES), values)

    def recent(self, limit: int = 20) -> list[dict[str, Any]]:
        """The latest requests, newest first, each with its last attempt's provider, model and tokens and its score."""
        with self.database.reading() as connection:
            return [dict(row) for row in connection.execute(queries.recent(limit)).mappings()]

    def judged(self) -> list[dict[str, Any]]:
        """What can be learned from: answered requests whose text was kept and which have an outcome, a row per outcome
        (prompt, tier that answered, score, source, noted_at)."""
        with self.database.reading() as connection:
            return [dict(row) for row in connection.execute(queries.judged()).mappings()]

    def close(self) -> None:
        """Write what still waits, and let go of the database."""
        self._commits.close()
        self.database.engine.dispose()

    def _begin_writing(self) -> None:
        self._open: dict[str, tuple[str, int]] = {}  # day and reserve of requests under way
        self._writer = Writer.here()
        database = self.database
        self._commits = GroupCommit(
            Store(database.engine, database.path, self._writer),
            Spool(self._folder, database.fingerprint, self._writer, max_bytes=self._spool_bytes),
            database.name,
            patience_s=self._patience_s,
            checkpointer=None if database.path is None else Checkpointer(database.engine),
        )

    def _settle_the_dead(self) -> None:
        for path, entries in left_behind(self._folder, self.database.fingerprint, self._writer):
            self._commits.replay(entries)
            path.unlink(missing_ok=True)
        interrupt_the_dead(self.database, self._writer)

    def _start_ticket(
        self,
        request_id: str,
        decision: Decision,
        judged_text: str,
        at: datetime,
        reserve_nanousd: int,
        ceiling_nanousd: int | None,
    ) -> Ticket:
        entry = start_entry(
            request_id,
            decision,
            judged_text,
            at,
            prompts=self.prompts,
            writer_id=self._writer.writer_id,
            reserve_nanousd=reserve_nanousd,
            ceiling_nanousd=ceiling_nanousd,
        )
        self._open[request_id] = (entry.day, entry.reserved_nanousd)
        return Ticket(entry)

    def _started(self, ticket: Ticket) -> None:
        if ticket.refused is None:
            return
        start = ticket.entry
        assert isinstance(start, Start)
        assert start.ceiling_nanousd is not None
        self._open.pop(start.request_id, None)
        limit, needed = Decimal(start.ceiling_nanousd) / NANO, Decimal(start.reserved_nanousd) / NANO
        if not isinstance(ticket.refused, Refused):
            raise SpendCeilingReached(limit, None, None, needed)
        reserved = ticket.refused.open_nanousd
        spent = ticket.refused.charged_nanousd - reserved
        raise SpendCeilingReached(limit, Decimal(spent) / NANO, Decimal(reserved) / NANO, needed)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def _after_fork() -> None:
    """A forked child must not touch its parent's connections and locks: it becomes a writer of its own."""
    for ledger in list(_opened):
        _inherited.append((ledger._commits, ledger.database.engine.pool))
        ledger.database.engine.dispose(close=False)
        ledger._begin_writing()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
