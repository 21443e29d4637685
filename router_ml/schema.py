"""The ledger's tables as they are now, and the ordered migrations that lead there from any earlier version.

Money is integer nano-USD, time is naive UTC, an unknown cost is NULL. ``charged_nanousd`` is what a request counts
against a spend ceiling: the reserved worst case while it is open, what it cost once that is known. ``spend`` holds the
sums of it, a row per day and writer, so that writers never wait for each other's row; only the day's sum means
anything.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import sqlalchemy as sa

from router_ml.errors import LedgerError

MIGRATION_LOCK = 7_028_117_203_844_011  # of PostgreSQL's advisory locks: one opener migrates, the others wait
SPEND_LOCK = 7_028_117_203_844_012  # one writer at a time compares the day's spend with a ceiling


class Utc(sa.TypeDecorator[datetime]):
    """Aware datetimes in and out; naive UTC in the database, the same on SQLite and PostgreSQL."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        return None if value is None else value.replace(tzinfo=UTC)


METADATA = sa.MetaData()

REQUESTS = sa.Table(
    "requests",
    METADATA,
    sa.Column("request_id", sa.String(32), primary_key=True),
    sa.Column("started_at", Utc, nullable=False, index=True),
    sa.Column("finished_at", Utc),
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
    sa.Column("writer_id", sa.String(32)),
    sa.Column("charged_nanousd", sa.BigInteger, nullable=False, server_default="0"),
)
ATTEMPTS = sa.Table(
    "attempts",
    METADATA,
    sa.Column("request_id", sa.String(32), sa.ForeignKey("requests.request_id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("provider", sa.String(64), nullable=False),
    sa.Column("model", sa.String(255), nullable=False),
    sa.Column("tier", sa.String(16), nullable=False),
    sa.Column("started_at", Utc, nullable=False),
    sa.Column("duration_ms", sa.Float, nullable=False),
    sa.Column("input_tokens", sa.BigInteger),
    sa.Column("cached_input_tokens", sa.BigInteger),
    sa.Column("output_tokens", sa.BigInteger),
    sa.Column("reasoning_tokens", sa.BigInteger),
    sa.Column("cost_nanousd", sa.BigInteger),
    sa.Column("cost_source", sa.String(32)),
    sa.Column("error", sa.Text),
    sa.Column("first_content_ms", sa.Float),
)
OUTCOMES = sa.Table(
    "outcomes",
    METADATA,
    sa.Column("request_id", sa.String(32), sa.ForeignKey("requests.request_id"), primary_key=True),
    sa.Column("source", sa.String(32), primary_key=True),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("noted_at", Utc, nullable=False),
)
WRITERS = sa.Table(
    "writers",
    METADATA,
    sa.Column("writer_id", sa.String(32), primary_key=True),
    sa.Column("place", sa.String(255), nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("process_started", sa.String(32), nullable=False),
    sa.Column("seen_at", Utc, nullable=False),
)
SPEND = sa.Table(
    "spend",
    METADATA,
    sa.Column("day", sa.String(10), primary_key=True),  # of the request's start, UTC, YYYY-MM-DD
    sa.Column("writer_id", sa.String(32), primary_key=True),
    sa.Column("charged_nanousd", sa.BigInteger, nullable=False),
)


def _first_tables(connection: sa.Connection) -> None:
    """Version 1: requests, attempts, outcomes."""
    time = "DATETIME" if connection.dialect.name == "sqlite" else "TIMESTAMP"
    _run(
        connection,
        f"""CREATE TABLE requests (
            request_id VARCHAR(32) NOT NULL PRIMARY KEY, started_at {time} NOT NULL, finished_at {time},
            status VARCHAR(16) NOT NULL, prompt TEXT, prompt_sha256 VARCHAR(64), tier VARCHAR(16) NOT NULL,
            reason TEXT NOT NULL, success_simple FLOAT, success_complex FLOAT, success_premium FLOAT, quality FLOAT,
            propensity FLOAT NOT NULL, classifier_version VARCHAR(64), policy_version VARCHAR(64) NOT NULL,
            cost_nanousd BIGINT)""",
        "CREATE INDEX ix_requests_started_at ON requests (started_at)",
        f"""CREATE TABLE attempts (
            request_id VARCHAR(32) NOT NULL REFERENCES requests (request_id), number INTEGER NOT NULL,
            provider VARCHAR(64) NOT NULL, model VARCHAR(255) NOT NULL, tier VARCHAR(16) NOT NULL,
            started_at {time} NOT NULL, duration_ms FLOAT NOT NULL, input_tokens BIGINT, cached_input_tokens BIGINT,
            output_tokens BIGINT, reasoning_tokens BIGINT, cost_nanousd BIGINT, cost_source VARCHAR(32), error TEXT,
            PRIMARY KEY (request_id, number))""",
        f"""CREATE TABLE outcomes (
            request_id VARCHAR(32) NOT NULL REFERENCES requests (request_id), source VARCHAR(32) NOT NULL,
            score FLOAT NOT NULL, noted_at {time} NOT NULL, PRIMARY KEY (request_id, source))""",
    )


def _writers_and_spend(connection: sa.Connection) -> None:
    """Version 2: who writes a row (so that a crash can be told from a slow answer), and each day's spend.

    Open rows have no known writer: they count as interrupted; if their process still runs, its answer overrules that.
    """
    time = "DATETIME" if connection.dialect.name == "sqlite" else "TIMESTAMP"
    _run(
        connection,
        "ALTER TABLE requests ADD COLUMN writer_id VARCHAR(32)",
        "ALTER TABLE requests ADD COLUMN charged_nanousd BIGINT NOT NULL DEFAULT 0",
        f"""CREATE TABLE writers (
            writer_id VARCHAR(32) NOT NULL PRIMARY KEY, place VARCHAR(255) NOT NULL, pid BIGINT NOT NULL,
            process_started VARCHAR(32) NOT NULL, seen_at {time} NOT NULL)""",
        """CREATE TABLE spend (
            day VARCHAR(10) NOT NULL, writer_id VARCHAR(32) NOT NULL, charged_nanousd BIGINT NOT NULL,
            PRIMARY KEY (day, writer_id))""",
        "CREATE INDEX ix_requests_open ON requests (started_at) WHERE status = 'started'",
        "UPDATE requests SET status = 'interrupted' WHERE status = 'started'",
        "UPDATE requests SET charged_nanousd = cost_nanousd WHERE cost_nanousd IS NOT NULL",
        """INSERT INTO spend (day, writer_id, charged_nanousd)
            SELECT substr(CAST(started_at AS TEXT), 1, 10), '', sum(charged_nanousd) FROM requests
            WHERE charged_nanousd <> 0 GROUP BY substr(CAST(started_at AS TEXT), 1, 10)""",
    )


def _first_content(connection: sa.Connection) -> None:
    """Version 3: how long a stream's first content took."""
    _run(connection, "ALTER TABLE attempts ADD COLUMN first_content_ms FLOAT")


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_first_tables, _writers_and_spend, _first_content)
VERSION = len(MIGRATIONS)


def version(connection: sa.Connection) -> int:
    """The schema's version: 0 where there are no tables, 1 where there are some but nothing says which."""
    tables = sa.inspect(connection).get_table_names()
    if "ledger_schema" not in tables:
        return 1 if "requests" in tables else 0
    return connection.execute(sa.text("SELECT max(version) FROM ledger_schema")).scalar() or 0


def migrate(connection: sa.Connection) -> None:
    """Bring the schema to ``VERSION``, inside the caller's transaction, which no other opener shares.

    Raises:
        LedgerError: the ledger was written by a newer router_ml.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    found = version(connection)
    refuse_newer(found)
    if found == VERSION:
        return
    _run(connection, "CREATE TABLE IF NOT EXISTS ledger_schema (version INTEGER NOT NULL PRIMARY KEY)")
    for number, step in enumerate(MIGRATIONS[found:], found + 1):
        step(connection)
        connection.execute(sa.text("INSERT INTO ledger_schema (version) VALUES (:number)"), {"number": number})


def refuse_newer(found: int) -> None:
    """Raises LedgerError where ``found`` is a version this library does not know."""
    if found > VERSION:
        raise LedgerError(
            f"the ledger has schema version {found}, this router_ml knows versions up to {VERSION}: upgrade router_ml"
        )


def _run(connection: sa.Connection, *statements: str) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)
