"""The schema as a literal, and the way there from the oldest ledger."""

import sys
from functools import partial

import pytest
import sqlalchemy as sa
from books import DECISION, NOW, in_threads, new_id, rows, write

from router_ml import schema
from router_ml.audit import verify
from router_ml.database import open_database
from router_ml.errors import LedgerError
from router_ml.ledger import Ledger

EXPECTED = {
    "requests": [
        *("request_id VARCHAR(32) key", "started_at TIME needed", "finished_at TIME", "status VARCHAR(16) needed"),
        *("prompt TEXT", "prompt_sha256 VARCHAR(64)", "tier VARCHAR(16) needed", "reason TEXT needed"),
        *("success_simple FLOAT", "success_complex FLOAT", "success_premium FLOAT", "quality FLOAT"),
        *("propensity FLOAT needed", "classifier_version VARCHAR(64)", "policy_version VARCHAR(64) needed"),
        *("cost_nanousd BIGINT", "writer_id VARCHAR(32)", "charged_nanousd BIGINT needed"),
    ],
    "attempts": [
        *("request_id VARCHAR(32) key", "number INTEGER key", "provider VARCHAR(64) needed"),
        *("model VARCHAR(255) needed", "tier VARCHAR(16) needed", "started_at TIME needed"),
        *("duration_ms FLOAT needed", "input_tokens BIGINT", "cached_input_tokens BIGINT", "output_tokens BIGINT"),
        *("reasoning_tokens BIGINT", "cost_nanousd BIGINT", "cost_source VARCHAR(32)", "error TEXT"),
        "first_content_ms FLOAT",
    ],
    "outcomes": [
        *("request_id VARCHAR(32) key", "source VARCHAR(32) key", "score FLOAT needed", "noted_at TIME needed"),
    ],
    "writers": [
        *("writer_id VARCHAR(32) key", "place VARCHAR(255) needed", "pid BIGINT needed"),
        *("process_started VARCHAR(32) needed", "seen_at TIME needed"),
    ],
    "spend": ["day VARCHAR(10) key", "writer_id VARCHAR(32) key", "charged_nanousd BIGINT needed"],
    "ledger_schema": ["version INTEGER key"],
}


def described(engine: sa.Engine) -> dict[str, list[str]]:
    inspector = sa.inspect(engine)
    names = {"DATETIME": "TIME", "TIMESTAMP": "TIME", "DOUBLE PRECISION": "FLOAT"}
    tables = {}
    for table in inspector.get_table_names():
        key = inspector.get_pk_constraint(table)["constrained_columns"]
        tables[table] = [
            f"{column['name']} {names.get(str(column['type']), column['type'])}"
            + (" key" if column["name"] in key else "" if column["nullable"] else " needed")
            for column in inspector.get_columns(table)
        ]
    return tables


def v1(url: str) -> sa.Engine:
    """A ledger as the first version of the library made it, with a request under way and one answered."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        schema._first_tables(connection)
        row = "VALUES (:id, :at, :at, :status, 'x', NULL, 'simple', 'r', NULL, NULL, NULL, 0.9, 1.0, NULL, 'p', :cost)"
        for request_id, status, cost in (("a" * 32, "answered", 5), ("b" * 32, "started", None)):
            values = {"id": request_id, "at": NOW.replace(tzinfo=None), "status": status, "cost": cost}
            connection.execute(sa.text(f"INSERT INTO requests {row}"), values)
        attempt = "VALUES (:id, 1, 'p', 'm', 'simple', :at, 1.0, 1, 0, 1, 0, 5, 'offer', NULL)"
        connection.execute(sa.text(f"INSERT INTO attempts {attempt}"), {"id": "a" * 32, "at": NOW.replace(tzinfo=None)})
    return engine


def test_the_schema_is_this_one(database_url: str) -> None:
    ledger = Ledger(database_url)
    assert described(ledger.database.engine) == EXPECTED
    indexes = {index["name"] for index in sa.inspect(ledger.database.engine).get_indexes("requests")}
    assert indexes == {"ix_requests_started_at", "ix_requests_open"}
    assert {t.name: [c.name for c in t.columns] for t in schema.METADATA.tables.values()} == {
        table: [column.split()[0] for column in columns]
        for table, columns in EXPECTED.items()
        if table != "ledger_schema"
    }
    ledger.close()


def test_the_oldest_ledger_is_migrated_with_its_rows(database_url: str) -> None:
    v1(database_url).dispose()
    ledger = Ledger(database_url)
    assert described(ledger.database.engine) == EXPECTED
    kept = rows(ledger, "SELECT request_id, status, cost_nanousd, charged_nanousd FROM requests ORDER BY request_id")
    assert kept == [("a" * 32, "answered", 5, 5), ("b" * 32, "interrupted", None, 0)]
    write(ledger)
    assert verify(ledger.database).violations == ()
    ledger.close()


def test_a_newer_ledger_is_refused_by_name_and_left_as_it_is(database_url: str) -> None:
    ledger = Ledger(database_url)
    with ledger.database.writing() as connection:
        connection.exec_driver_sql("INSERT INTO ledger_schema (version) VALUES (99)")
    with pytest.raises(LedgerError, match="schema version 99, this router_ml knows versions up to 3: upgrade"):
        Ledger(database_url)
    ledger.close()


@pytest.mark.parametrize("before", ["nothing", "v1"])
def test_openers_at_the_same_moment_make_one_ledger(database_url: str, before: str) -> None:
    if before == "v1":
        v1(database_url).dispose()
    opened: list[Ledger] = []
    in_threads(6, [lambda: opened.append(Ledger(database_url))] * 6)
    in_threads(6, [partial(ledger.start, new_id(), DECISION, "x", NOW) for ledger in opened])
    assert rows(opened[0], "SELECT count(*) FROM requests WHERE status = 'started'") == [(6,)]
    assert rows(opened[0], "SELECT version FROM ledger_schema ORDER BY version")[-1] == (3,)
    for ledger in opened:
        ledger.close()


def test_tools_do_not_make_a_ledger(database_url: str) -> None:
    with pytest.raises(LedgerError, match=r"no such file|no ledger"):
        open_database(database_url, create=False)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(LedgerError, match=r"the package 'psycopg': pip install 'router-ml\[postgres\]'"):
        Ledger("postgresql+psycopg://nobody@127.0.0.1:9/none")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("router.db", "no SQLAlchemy URL"),
        ("sqlite://", "a ledger is a file"),
        ("sqlite:///:memory:", "a ledger is a file"),
        ("mysql://root:secret@127.0.0.1/x", "neither SQLite nor PostgreSQL"),
        ("postgresql+psycopg://nobody:secret@127.0.0.1:9/none", "cannot be opened"),
    ],
)
def test_a_database_that_will_not_do_is_a_named_error_without_its_password(url: str, why: str) -> None:
    with pytest.raises(LedgerError, match=why) as caught:
        Ledger(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
