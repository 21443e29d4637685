"""The books: every request, every attempt and every outcome, in SQL.

A request's row is committed as ``started`` before any provider is called and completed after, so a crash leaves no
unlogged bill. Money is integer nano-USD, time is UTC, an unknown cost is NULL. If the database fails later on, the
request is still answered: the row waits in memory and is written with the next one.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import sqlalchemy as sa

from router_ml.errors import InputError, LedgerError
from router_ml.types import TIERS, Attempt, Decision, Outcome

Prompts = Literal["full", "hash", "off"]
Write = Callable[[sa.Connection], object]

NANO = Decimal(1_000_000_000)
MAX_WAITING = 10_000
_BUSY_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)


class _Utc(sa.TypeDecorator[datetime]):
    """Aware datetimes in and out; naive UTC in the database, the same on SQLite and PostgreSQL."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.replace(tzinfo=UTC)


_metadata = sa.MetaData()

REQUESTS = sa.Table(
    "requests",
    _metadata,
    sa.Column("request_id", sa.String(32), primary_key=True),
    sa.Column("started_at", _Utc, nullable=False, index=True),
    sa.Column("finished_at", _Utc),
    sa.Column("status", sa.String(16), nullable=False),  # started | answered | failed | interrupted
    sa.Column("prompt", sa.Text),
    sa.Column("prompt_sha256", sa.String(64)),
    sa.Column("tier", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("success_simple", sa.Float),
    sa.Column("success_complex", sa.Float),
    sa.Column("success_premium", sa.Float),
    sa.Column("quality", sa.Float),
    sa.Column("propensity", sa.Float, nullable=False),
    sa.Column("classifier_version", sa.String(64)),
    sa.Column("policy_version", sa.String(64), nullable=False),
    sa.Column("cost_nanousd", sa.BigInteger),
)
ATTEMPTS = sa.Table(
    "attempts",
    _metadata,
    sa.Column("request_id", sa.String(32), sa.ForeignKey("requests.request_id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("provider", sa.String(64), nullable=False),
    sa.Column("model", sa.String(255), nullable=False),
    sa.Column("tier", sa.String(16), nullable=False),
    sa.Column("started_at", _Utc, nullable=False),
    sa.Column("duration_ms", sa.Float, nullable=False),
    sa.Column("input_tokens", sa.BigInteger),
    sa.Column("cached_input_tokens", sa.BigInteger),
    sa.Column("output_tokens", sa.BigInteger),
    sa.Column("reasoning_tokens", sa.BigInteger),
    sa.Column("cost_nanousd", sa.BigInteger),
    sa.Column("cost_source", sa.String(32)),
    sa.Column("error", sa.Text),
)
OUTCOMES = sa.Table(
    "outcomes",
    _metadata,
    sa.Column("request_id", sa.String(32), sa.ForeignKey("requests.request_id"), primary_key=True),
    sa.Column("source", sa.String(32), primary_key=True),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("noted_at", _Utc, nullable=False),
)


class Ledger:
    """The three tables behind an SQLAlchemy URL; safe to use from several threads."""

    def __init__(self, url: str, *, prompts: Prompts = "full") -> None:
        """Open, making the tables where they are missing. Raises LedgerError where that cannot be done."""
        self.prompts = prompts
        self.dropped = 0
        self._waiting: deque[Write] = deque()
        self._lock = threading.Lock()
        try:
            self._engine = sa.create_engine(url)
            self._name = self._engine.url.render_as_string(hide_password=True)
            if self._engine.dialect.name == "sqlite":
                sa.event.listen(self._engine, "connect", _prepare_sqlite)
                sa.event.listen(self._engine, "begin", _begin_immediate)
            with self._engine.begin() as connection:
                _metadata.create_all(connection)
        except sa.exc.ArgumentError:
            raise LedgerError("the ledger's database is no SQLAlchemy URL; sqlite:///router.db is one") from None
        except ModuleNotFoundError as exc:
            raise LedgerError(f"the ledger's database needs the package {exc.name!r}, which is not installed") from None
        except sa.exc.SQLAlchemyError as exc:
            raise LedgerError(f"the ledger {self._name} cannot be opened: {_reason(exc)}") from None

    def start(self, request_id: str, decision: Decision, judged_text: str, at: datetime) -> None:
        """Phase one: commit that a provider is about to be called."""
        complexity = decision.complexity
        success = {f"success_{tier}": complexity.success[tier] if complexity else None for tier in TIERS}
        row = {
            "request_id": request_id,
            "started_at": at,
            "status": "started",
            **self._kept(judged_text),
            "tier": decision.tier.value,
            "reason": decision.reason,
            **success,
            "quality": decision.quality,
            "propensity": decision.propensity,
            "classifier_version": complexity.classifier_version if complexity else None,
            "policy_version": decision.policy_version,
        }
        self._write(lambda connection: connection.execute(sa.insert(REQUESTS), row))

    def finish(self, request_id: str, status: str, attempts: Sequence[Attempt], at: datetime) -> None:
        """Phase two: how it ended, with every attempt and what it cost."""
        rows = [_attempt_row(request_id, number, attempt) for number, attempt in enumerate(attempts, 1)]
        costs = [row["cost_nanousd"] for row in rows if row["cost_nanousd"] is not None]
        known = bool(rows) and (status != "answered" or rows[-1]["cost_nanousd"] is not None)
        done = {"status": status, "finished_at": at, "cost_nanousd": sum(costs) if known and costs else None}

        def write(connection: sa.Connection) -> None:
            connection.execute(
                sa.update(REQUESTS).where(REQUESTS.c.request_id == sa.bindparam("id")), {"id": request_id, **done}
            )
            if rows:
                connection.execute(sa.insert(ATTEMPTS), rows)

        self._write(write)

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
        with self._reported(), self._engine.begin() as connection:
            if connection.execute(known).first() is None:
                raise LedgerError(f"the ledger {self._name} has no request {_short(outcome.request_id)!r}")
            connection.execute(sa.delete(OUTCOMES).where(key))
            connection.execute(
                sa.insert(OUTCOMES),
                {
                    "request_id": outcome.request_id,
                    "source": outcome.source,
                    "score": outcome.score,
                    "noted_at": outcome.noted_at,
                },
            )

    def recent(self, limit: int = 20) -> list[dict[str, Any]]:
        """The latest requests, newest first, each with its last attempt's provider, model and tokens and its score."""
        last = (
            sa.select(ATTEMPTS.c.request_id, sa.func.max(ATTEMPTS.c.number).label("number"))
            .group_by(ATTEMPTS.c.request_id)
            .subquery()
        )
        score = (
            sa.select(OUTCOMES.c.request_id, sa.func.avg(OUTCOMES.c.score).label("score"))
            .group_by(OUTCOMES.c.request_id)
            .subquery()
        )
        a = ATTEMPTS
        rows = (
            sa.select(
                REQUESTS,
                a.c.provider,
                a.c.model,
                a.c.input_tokens,
                a.c.output_tokens,
                a.c.error,
                last.c.number.label("attempts"),
                score.c.score,
            )
            .outerjoin(last, last.c.request_id == REQUESTS.c.request_id)
            .outerjoin(a, (a.c.request_id == REQUESTS.c.request_id) & (a.c.number == last.c.number))
            .outerjoin(score, score.c.request_id == REQUESTS.c.request_id)
            .order_by(REQUESTS.c.started_at.desc())
            .limit(limit)
        )
        with self._reported(), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(rows).mappings()]

    def judged(self) -> list[dict[str, Any]]:
        """What can be learned from: answered requests whose text was kept and which have an outcome, a row per outcome
        (prompt, tier that answered, score, source, noted_at)."""
        a = ATTEMPTS
        rows = (
            sa.select(
                REQUESTS.c.request_id,
                REQUESTS.c.prompt,
                a.c.tier,
                OUTCOMES.c.score,
                OUTCOMES.c.source,
                OUTCOMES.c.noted_at,
            )
            .join(OUTCOMES, OUTCOMES.c.request_id == REQUESTS.c.request_id)
            .join(a, (a.c.request_id == REQUESTS.c.request_id) & a.c.error.is_(None))
            .where(REQUESTS.c.prompt.is_not(None))
            .order_by(REQUESTS.c.started_at)
        )
        with self._reported(), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(rows).mappings()]

    def close(self) -> None:
        """Write what still waits, and let go of the database."""
        self._write(None)
        self._engine.dispose()

    def _kept(self, text: str) -> Mapping[str, str | None]:
        if self.prompts == "off":
            return {"prompt": None, "prompt_sha256": None}
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        # PostgreSQL cannot store NUL; what is kept is the same everywhere.
        return {"prompt": text.replace("\0", "\ufffd") if self.prompts == "full" else None, "prompt_sha256": sha256}

    def _write(self, write: Write | None) -> None:
        """Commit ``write`` after all that waits. Never raises: a request that was paid for is not lost to its log."""
        with self._lock:
            if write is not None:
                self._waiting.append(write)
            try:
                while self._waiting:
                    with self._engine.begin() as connection:
                        self._waiting[0](connection)
                    self._waiting.popleft()
            except sa.exc.IntegrityError as exc:  # this one can never be written: do not hold up the rest
                self._waiting.popleft()
                self._drop(1, _reason(exc))
            except sa.exc.SQLAlchemyError as exc:
                excess = max(0, len(self._waiting) - MAX_WAITING)
                for _ in range(excess):
                    self._waiting.popleft()
                self._drop(excess, _reason(exc))
                _log.error(
                    "ledger %s cannot be written (%s): %d rows wait", self._name, _reason(exc), len(self._waiting)
                )

    def _drop(self, count: int, reason: str) -> None:
        self.dropped += count
        if count:
            _log.error("ledger %s: %d rows dropped (%s), %d so far", self._name, count, reason, self.dropped)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as exc:
            raise LedgerError(f"the ledger {self._name} cannot be used: {_reason(exc)}") from None


def _attempt_row(request_id: str, number: int, attempt: Attempt) -> dict[str, Any]:
    usage, cost = attempt.usage, attempt.cost
    return {
        "request_id": request_id,
        "number": number,
        "provider": attempt.offer.provider,
        "model": attempt.offer.model,
        "tier": attempt.offer.tier.value,
        "started_at": attempt.started_at,
        "duration_ms": attempt.duration_ms,
        "input_tokens": usage.input_tokens if usage else None,
        "cached_input_tokens": usage.cached_input_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "reasoning_tokens": usage.reasoning_tokens if usage else None,
        "cost_nanousd": None if cost.usd is None else int((cost.usd * NANO).to_integral_value()),
        "cost_source": cost.source,
        "error": attempt.error,
    }


def _reason(exc: sa.exc.SQLAlchemyError) -> str:
    """The driver's own words without statement and parameters, which hold the prompt."""
    return str(getattr(exc, "orig", None) or type(exc).__name__).splitlines()[0]


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_immediate alone
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
        f"busy_timeout={int(_BUSY_TIMEOUT_S * 1000)}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
