"""The SQL that writes a ledger, in either driver's parameter style, and what may be said of its errors."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from router_ml.entries import ATTEMPT_COLUMNS, START_COLUMNS

POISON = (ValueError, OverflowError, TypeError)  # a value no driver can bind


class Statements:
    """The SQL, in one driver's parameter style."""

    def __init__(self, mark: str, *, lock_rows: bool) -> None:
        def sql(text: str) -> str:
            return text.replace("?", mark)

        self.start = sql(f"{_insert('requests', START_COLUMNS)} ON CONFLICT DO NOTHING")
        self.attempt = sql(f"{_insert('attempts', ATTEMPT_COLUMNS)} ON CONFLICT DO NOTHING")
        self.finish = sql(
            "UPDATE requests SET status = ?, finished_at = ?, cost_nanousd = ?, charged_nanousd = ?"
            " WHERE request_id = ?"
        )
        self.finish_new = self.finish + sql(" AND status = 'started' AND charged_nanousd = ?")
        state = sql("SELECT status, charged_nanousd, started_at FROM requests WHERE request_id = ?")
        self.state = f"{state} FOR UPDATE" if lock_rows else state
        self.day = sql("SELECT COALESCE(SUM(charged_nanousd), 0) FROM spend WHERE day = ?")
        self.day_open = sql(
            "SELECT COALESCE(SUM(charged_nanousd), 0) FROM requests"
            " WHERE status = 'started' AND started_at >= ? AND started_at <= ?"
        )
        self.charge = sql(
            f"{_insert('spend', ('day', 'writer_id', 'charged_nanousd'))} ON CONFLICT (day, writer_id)"
            " DO UPDATE SET charged_nanousd = spend.charged_nanousd + excluded.charged_nanousd"
        )
        self.seen = sql(
            f"{_insert('writers', ('writer_id', 'place', 'pid', 'process_started', 'seen_at'))}"
            " ON CONFLICT (writer_id) DO UPDATE SET seen_at = excluded.seen_at"
        )
        self.forget = sql(
            "DELETE FROM writers WHERE writer_id = ?"
            " AND NOT EXISTS (SELECT 1 FROM requests WHERE status = 'started' AND writer_id = ?)"
        )
        self.is_ledger = "SELECT version FROM ledger_schema LIMIT 1"


def _insert(table: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - names of our schema, values are bound


def reason(exc: BaseException) -> str:
    """The driver's own words, first line, without statement and parameters, which hold the prompt."""
    if isinstance(exc, OSError):
        return exc.strerror or type(exc).__name__
    if isinstance(exc, POISON):
        return f"a value cannot be stored ({type(exc).__name__})"
    own = getattr(exc, "orig", None) if isinstance(exc, sa.exc.SQLAlchemyError) else exc
    primary = getattr(getattr(own, "diag", None), "message_primary", None)
    text = primary or str(own or type(exc).__name__)
    return text.splitlines()[0] if text else type(exc).__name__
