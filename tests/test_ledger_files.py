"""L6 of FAULTS.md: a SQLite file that is deleted, replaced, damaged, or was never a ledger."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from books import counts, in_threads, wait_until, write

from router_ml.database import open_database
from router_ml.errors import LedgerError
from router_ml.ledger import Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{path}", patience_s=0.1)
    yield opened
    opened.close()


def test_l6_a_deleted_file_is_not_recreated_and_its_rows_wait(path: Path, ledger: Ledger) -> None:
    write(ledger)
    kept = path.rename(path.with_suffix(".moved"))
    write(ledger)
    assert not path.exists()
    assert ledger.waiting == 2
    kept.rename(path)
    wait_until(lambda: ledger.waiting == 0)
    assert counts(ledger) == {"answered": 2, "attempts": 2}


def test_l6_reading_does_not_recreate_a_deleted_file(path: Path) -> None:
    Ledger(f"sqlite:///{path}").close()
    database = open_database(f"sqlite:///{path}", create=True)
    database.engine.dispose()
    path.unlink()
    with pytest.raises(LedgerError, match="unable to open"), database.reading():
        pass
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"not a database"])
def test_l6_a_file_that_was_replaced_is_neither_written_nor_forgotten(
    path: Path, ledger: Ledger, content: bytes
) -> None:
    write(ledger)
    kept = path.rename(path.with_suffix(".moved"))
    path.write_bytes(content)
    write(ledger)
    assert path.read_bytes() == content
    assert ledger.waiting == 2
    kept.replace(path)
    wait_until(lambda: ledger.waiting == 0)
    assert counts(ledger) == {"answered": 2, "attempts": 2}


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + b"\1" * 5_000])
def test_l6_a_file_that_is_no_ledger_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(f"sqlite:///{path}")
    assert path.read_bytes() == content


def test_l6_another_programs_database_is_refused_and_left_as_it_is(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(LedgerError, match="it holds no ledger"):
        Ledger(f"sqlite:///{path}")


@pytest.mark.parametrize("percent", [1, 20, 50, 80, 99])
def test_l6_a_truncated_file_is_refused_by_name(path: Path, percent: int) -> None:
    ledger = Ledger(f"sqlite:///{path}")
    in_threads(4, [lambda: write(ledger)] * 300)
    ledger.close()
    os.truncate(path, path.stat().st_size * percent // 100)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"truncated|damaged"):
        Ledger(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_l6_a_file_truncated_while_open_spools_and_says_so(
    path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        write(ledger)
    other = sqlite3.connect(path)
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    os.truncate(path, 5_000)
    for _ in range(5):
        write(ledger)
    assert ledger.waiting == 10
    assert "cannot be written" in caplog.text
    assert path.stat().st_size == 5_000


def test_l6_a_read_only_ledger_is_refused_by_name(path: Path) -> None:
    Ledger(f"sqlite:///{path}").close()
    path.chmod(0o444)
    as_root = os.access(path, os.W_OK)  # whom permissions do not stop
    chattr = shutil.which("chattr") or "chattr"
    if as_root and subprocess.run([chattr, "+i", path], check=False, capture_output=True).returncode:
        pytest.skip("root, on a file system without immutable files: nothing is read-only")
    try:
        with pytest.raises(LedgerError, match="the file is read-only"):
            Ledger(f"sqlite:///{path}")
        assert counts(Ledger(f"sqlite:///{path}", inspect=True)) == {"attempts": 0}
    finally:
        if as_root:
            subprocess.run([chattr, "-i", path], check=True)
