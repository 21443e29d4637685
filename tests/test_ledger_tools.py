"""verify, prune, export: as functions on both databases, and as commands."""

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from books import DECISION, NANOUSD, NOW, SOON, attempt, counts, new_id, rows, write

from router_ml import archive
from router_ml.audit import verify
from router_ml.cli import main
from router_ml.errors import InputError, LedgerError
from router_ml.ledger import Ledger
from router_ml.ledger_cli import age
from router_ml.types import Outcome


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    opened = Ledger(database_url)
    yield opened
    opened.close()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


def write_at(ledger: Ledger, at: datetime) -> str:
    request_id = new_id()
    ledger.start(request_id, DECISION, "x", at)
    ledger.finish(request_id, "failed", [], at)
    return request_id


def test_a_ledger_in_use_is_sound(ledger: Ledger) -> None:
    ledger.add_outcome(Outcome(write(ledger), 0.5, "user", SOON))
    request_id = new_id()
    ledger.start(request_id, DECISION, "x", NOW, reserve_nanousd=10**9)
    ledger.finish(request_id, "failed", [attempt(None, "reset")], SOON)
    ledger.start(new_id(), DECISION, "x", NOW, reserve_nanousd=10**9)
    audit = verify(ledger.database)
    assert audit.violations == ()
    assert (audit.requests, audit.attempts, audit.outcomes) == (3, 2, 1)
    assert len(audit.checked) >= 17


BREAKS = [
    ("UPDATE requests SET status = 'lost'", "a status is"),
    ("DELETE FROM attempts", "an answered request has one answered attempt"),
    ("UPDATE requests SET status = 'failed'", "a failed request has no answered attempt"),
    ("UPDATE attempts SET number = 2", "attempts are numbered"),
    ("UPDATE attempts SET cost_nanousd = 1", "a request's cost is the sum"),
    ("UPDATE requests SET cost_nanousd = NULL", "a request has a cost"),
    ("UPDATE attempts SET cost_nanousd = -1", "no cost is negative"),
    ("UPDATE requests SET charged_nanousd = 1", "a request is charged at least"),
    ("UPDATE outcomes SET score = 1.5", "a score lies"),
    ("UPDATE attempts SET tier = 'huge'", "a tier is a known one"),
    ("UPDATE requests SET finished_at = '2020-01-01 00:00:00.000000'", "a request ends after"),
    ("UPDATE attempts SET started_at = '2020-01-01 00:00:00.000000'", "an attempt starts no earlier"),
    ("UPDATE requests SET finished_at = NULL", "a request that has ended says when"),
    ("UPDATE requests SET status = 'started', writer_id = 'nobody'", "no request is open"),
    ("UPDATE spend SET charged_nanousd = 1", "a day's spend"),
    ("DELETE FROM spend", "a day's spend"),
]


@pytest.mark.parametrize(("sql", "invariant"), BREAKS, ids=[invariant for _, invariant in BREAKS])
def test_each_broken_invariant_is_found(ledger: Ledger, sql: str, invariant: str) -> None:
    request_id = write(ledger)
    ledger.add_outcome(Outcome(request_id, 0.5, "user", SOON))
    with ledger.database.writing() as connection:
        connection.exec_driver_sql(sql)
    broken = {violation.invariant: violation for violation in verify(ledger.database).violations}
    [name] = [name for name in broken if name.startswith(invariant)]
    assert broken[name].count == 1
    assert broken[name].examples in ((request_id,), (str(NOW.date()),))


@pytest.mark.parametrize("table", ["attempts", "outcomes"])
def test_orphans_are_found(url: str, tmp_path: Path, table: str) -> None:
    ledger = Ledger(url)
    ledger.add_outcome(Outcome(write(ledger), 0.5, "user", SOON))
    ledger.close()
    other = sqlite3.connect(tmp_path / "ledger.db")
    other.execute(f"UPDATE {table} SET request_id = 'x'")
    other.commit()
    other.close()
    with Ledger(url, inspect=True).database.reading():
        found = verify(Ledger(url, inspect=True).database).violations
    assert f"every {table[:-1]} has its request" in {violation.invariant for violation in found}


def test_a_damaged_page_is_found(url: str, tmp_path: Path) -> None:
    ledger = Ledger(url)
    for _ in range(200):
        write(ledger)
    ledger.close()
    with (tmp_path / "ledger.db").open("r+b") as file:
        file.seek(4096 * 10)
        file.write(b"\xff" * 4096 * 10)
    [violation] = verify(Ledger(url, inspect=True).database).violations
    assert violation.invariant == "the SQLite file is intact"


def test_prune_takes_whole_old_requests_and_their_spend(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_PRUNED_AT_ONCE", 10)
    old = [write(ledger) for _ in range(25)]
    ledger.add_outcome(Outcome(old[0], 1.0, "user", SOON))
    kept = write_at(ledger, NOW + timedelta(days=1))
    open_id = new_id()
    ledger.start(open_id, DECISION, "x", NOW, reserve_nanousd=5)
    told: list[tuple[int, int]] = []
    pruned = archive.prune(ledger.database, NOW + timedelta(hours=1), progress=lambda *numbers: told.append(numbers))
    assert (pruned, told) == (25, [(10, 25), (20, 25), (25, 25)])
    assert {row["request_id"] for row in ledger.recent()} == {kept, open_id}
    assert rows(ledger, "SELECT count(*) FROM attempts") == rows(ledger, "SELECT count(*) FROM outcomes") == [(0,)]
    assert verify(ledger.database).violations == ()


def test_prune_can_keep_what_was_judged(ledger: Ledger) -> None:
    judged, _ = write(ledger), write(ledger)
    ledger.add_outcome(Outcome(judged, 1.0, "user", SOON))
    assert archive.prune(ledger.database, NOW + timedelta(hours=1), keep_judged=True) == 1
    assert counts(ledger) == {"answered": 1, "attempts": 1}
    assert len(ledger.judged()) == 1
    assert verify(ledger.database).violations == ()


def test_exports_hold_every_request_with_its_attempts_and_outcomes(ledger: Ledger, tmp_path: Path) -> None:
    request_id = write(ledger)
    ledger.add_outcome(Outcome(request_id, 0.5, "user", SOON))
    write_at(ledger, NOW + timedelta(days=1))
    for name in ("l.jsonl", "l.parquet"):
        assert archive.export(ledger.database, tmp_path / name) == 2
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    table: list[dict[str, Any]] = pq.read_table(tmp_path / "l.parquet").to_pylist()
    for records in (lines, table):
        assert records[0]["request_id"] == request_id
        assert records[0]["attempts"][0]["cost_nanousd"] == NANOUSD
        assert records[0]["outcomes"][0]["score"] == 0.5
        assert (records[1]["attempts"], records[1]["outcomes"]) == ([], [])
    assert table[0]["started_at"] == NOW
    assert datetime.fromisoformat(lines[0]["started_at"]) == NOW


def test_a_failing_export_leaves_the_old_file_and_nothing_else(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(url)
    write(ledger)
    target = tmp_path / "out" / "l.jsonl"
    target.parent.mkdir()
    target.write_text("old")

    def fail(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(LedgerError, match="No space left"):
        archive.export(ledger.database, target, progress=fail)
    assert {path.name: path.read_text() for path in target.parent.iterdir()} == {"l.jsonl": "old"}
    monkeypatch.setattr(archive, "find_spec", lambda name: None)
    with pytest.raises(LedgerError, match="pyarrow"):
        archive.export(ledger.database, tmp_path / "l.parquet")
    with pytest.raises(InputError, match="neither"):
        archive.export(ledger.database, tmp_path / "l.csv")
    ledger.close()


def test_the_commands_say_what_they_did_and_how_it_went(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(url)
    write(ledger)
    write_at(ledger, datetime.now(UTC))
    assert main(["ledger", "verify", "--database", url]) == 0
    assert "2 requests, 1 attempts, 0 outcomes" in capsys.readouterr().out
    with ledger.database.writing() as connection:
        connection.exec_driver_sql("UPDATE spend SET charged_nanousd = 1")
    assert main(["ledger", "verify", "--json", "--database", url]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["sound"], len(said["violations"])) == (False, 1)
    assert main(["ledger", "export", str(tmp_path / "l.jsonl"), "--database", url]) == 0
    assert main(["ledger", "prune", "--older-than", "1h", "--json", "--database", url]) == 0
    assert '"pruned": 1' in capsys.readouterr().out
    assert counts(ledger) == {"failed": 1, "attempts": 0}
    ledger.close()


@pytest.mark.parametrize("wrong", [["--older-than", "soon"], ["--older-than", "0d"], ["--older-than", "-1d"]])
def test_a_wrong_age_is_wrong_usage(url: str, wrong: list[str]) -> None:
    Ledger(url).close()
    assert main(["ledger", "prune", "--database", url, f"{wrong[0]}={wrong[1]}"]) == 2
    assert age("90d") == timedelta(days=90)


def test_tools_do_not_make_a_ledger_that_is_not_there(url: str, tmp_path: Path) -> None:
    assert main(["ledger", "verify", "--database", url]) == 1
    assert list(tmp_path.iterdir()) == []
