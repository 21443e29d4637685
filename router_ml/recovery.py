"""Open requests of writers that are gone: found, and marked ``interrupted``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from router_ml.database import Database
from router_ml.process import Writer, is_dead
from router_ml.schema import REQUESTS, WRITERS


def dead_writers(connection: sa.Connection, here: Writer) -> list[str]:
    """Ids of the registered writers that are gone, as judged from ``here``."""
    now = datetime.now(UTC)
    w = WRITERS.c
    rows = connection.execute(sa.select(w.writer_id, w.place, w.pid, w.process_started, w.seen_at))
    return [row[0] for row in rows if is_dead(Writer(*row[:4]), row[4], here, now)]


def abandoned(dead: Sequence[str]) -> sa.ColumnElement[bool]:
    """The open requests that nobody will finish: their writer is among ``dead``, or not known any more."""
    known = sa.select(WRITERS.c.writer_id)
    gone = REQUESTS.c.writer_id.in_(dead) | REQUESTS.c.writer_id.not_in(known) | REQUESTS.c.writer_id.is_(None)
    return (REQUESTS.c.status == "started") & gone


def interrupt_the_dead(database: Database, here: Writer) -> int:
    """Mark what dead writers left open; returns how many. What was reserved for it stays charged: it may have been
    billed. Takes the write lock only where there is something to do."""
    with database.reading() as connection:
        dead = dead_writers(connection, here)
        count = connection.execute(sa.select(sa.func.count()).where(abandoned(dead))).scalar_one()
    if not dead and not count:
        return 0
    with database.writing() as connection:
        done = connection.execute(sa.update(REQUESTS).where(abandoned(dead)).values(status="interrupted"))
        connection.execute(sa.delete(WRITERS).where(WRITERS.c.writer_id.in_(dead)))
        return done.rowcount
