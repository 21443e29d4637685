"""L4, L5 of FAULTS.md: the database is locked, full or failing, so rows wait in the spool."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from books import DECISION, NOW, SOON, attempt, command, counts, new_id, wait_until, write
from conftest import BUSY_MACHINE_S
from databases import locked

from router_ml.ledger import Ledger

CANARY = "prompt-canary-31415"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{path}", patience_s=0.1)
    yield opened
    opened.close()


@pytest.mark.parametrize("seconds", [1.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_l4_a_locked_database_delays_no_request_and_loses_no_row(database_url: str, seconds: float) -> None:
    ledger = Ledger(database_url, patience_s=0.1)
    write(ledger)
    slowest_s = 0.0
    written = 1
    with locked(database_url):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            clock = time.perf_counter()
            write(ledger)
            slowest_s = max(slowest_s, time.perf_counter() - clock)
            written += 1
            time.sleep(0.01)
        assert ledger.waiting == 2 * (written - 1)
    assert slowest_s < 0.1 + BUSY_MACHINE_S
    wait_until(lambda: ledger.waiting == 0)
    write(ledger)
    assert counts(ledger) == {"answered": written + 1, "attempts": written + 1}
    assert ledger.dropped == 0
    ledger.close()
    assert not ledger._commits._spool.path.exists()


def test_l4_rows_for_a_database_locked_for_ever_are_written_by_the_next_process(database_url: str) -> None:
    first = Ledger(database_url, patience_s=0.05)
    first.close()
    with locked(database_url):
        worker = subprocess.run(command(database_url, 5, 2), capture_output=True, text=True, timeout=60, check=True)
    assert worker.stdout.count("f ") == 5
    assert "rows unwritten" in worker.stderr
    [spool] = Path.cwd().glob("*-spool/*.jsonl")
    assert spool.stat().st_mode & 0o077 == 0
    ledger = Ledger(database_url)
    assert counts(ledger) == {"answered": 5, "attempts": 5}
    assert not spool.exists()
    ledger.close()


def test_l4_an_event_loop_is_not_held_up_by_a_lock(database_url: str) -> None:
    ledger = Ledger(database_url, patience_s=1.0)
    write(ledger)

    async def longest_pause_s() -> float:
        task = asyncio.gather(*(ledger.start_async(new_id(), DECISION, "x", NOW) for _ in range(50)))
        longest = 0.0
        while not task.done():
            clock = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - clock)
        return longest

    with locked(database_url):
        assert asyncio.run(longest_pause_s()) < BUSY_MACHINE_S
    wait_until(lambda: ledger.waiting == 0)
    assert counts(ledger) == {"answered": 1, "started": 50, "attempts": 1}
    ledger.close()


def test_an_event_loop_does_not_wait_for_the_spools_disk(
    path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced_by: list[threading.Thread] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (synced_by.append(threading.current_thread()), real(file)))

    async def three() -> None:
        for _ in range(3):
            await ledger.start_async(new_id(), DECISION, "x", NOW)

    with locked(f"sqlite:///{path}"):
        asyncio.run(three())
    assert len(synced_by) >= 3
    assert threading.main_thread() not in synced_by


def test_l5_a_full_database_spools_and_is_written_when_there_is_room(path: Path, ledger: Ledger) -> None:
    write(ledger)
    connection = ledger._commits._store._connection
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages}")
    for _ in range(20):
        write(ledger, prompt="long " * 1_000)
    assert ledger.waiting > 0
    connection.execute("PRAGMA max_page_count=1000000")
    wait_until(lambda: ledger.waiting == 0)
    assert counts(ledger) == {"answered": 21, "attempts": 21}
    assert ledger.dropped == 0


LIMITED = """
import resource, sys
from books import *
ledger = Ledger(sys.argv[1], patience_s=0.1)
write(ledger)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 10_000_000))
for _ in range(30):
    write(ledger, prompt="long " * 2_000)
assert ledger.waiting > 0 and ledger._commits._spool.only_in_memory > 0
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))
ledger.close()
assert (ledger.waiting, ledger.dropped) == (0, 0)
"""


def test_l5_a_file_size_limit_hits_database_and_spool_and_no_row_is_lost(path: Path) -> None:
    limited = [sys.executable, "-c", LIMITED, f"sqlite:///{path}"]
    subprocess.run(limited, cwd=Path(__file__).parent, check=True, timeout=60, stderr=subprocess.DEVNULL)
    ledger = Ledger(f"sqlite:///{path}")
    assert counts(ledger) == {"answered": 31, "attempts": 31}
    ledger.close()


TORN = """
import os, resource, sys
from books import *
ledger = Ledger(sys.argv[1], patience_s=0.05)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 10_000_000))
for _ in range(10):
    write(ledger, prompt="long " * 1_000)
assert ledger._commits._spool.only_in_memory > 0
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))
write(ledger)
assert ledger._commits._spool.only_in_memory == 0
os._exit(1)
"""


def test_l5_a_spool_that_was_full_for_a_while_holds_every_row_once_it_is_not(path: Path) -> None:
    url = f"sqlite:///{path}"
    Ledger(url).close()
    with locked(url):
        torn = subprocess.run([sys.executable, "-c", TORN, url], cwd=Path(__file__).parent, capture_output=True)
    assert torn.returncode == 1, torn.stderr
    ledger = Ledger(url)
    assert counts(ledger) == {"answered": 11, "attempts": 11}
    ledger.close()


def test_l5_the_spool_is_bounded_and_counts_what_it_dropped(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(f"sqlite:///{path}", patience_s=0.05, spool_bytes=20_000)
    with locked(f"sqlite:///{path}"):
        for _ in range(100):
            write(ledger)
        kept = ledger.waiting
        assert ledger.dropped == 200 - kept > 0
    wait_until(lambda: ledger.waiting == 0)
    answered = counts(ledger)["answered"]
    assert answered == counts(ledger)["attempts"]
    assert "the spool is full" in caplog.text
    ledger.close()


def test_a_spooled_prompt_is_kept_as_configured(path: Path) -> None:
    for prompts in ("full", "hash", "off"):
        ledger = Ledger(f"sqlite:///{path}", patience_s=0.05, prompts=prompts)  # type: ignore[arg-type]
        with locked(f"sqlite:///{path}"):
            write(ledger, prompt=CANARY)
            spooled = ledger._commits._spool.path.read_text()
        assert (CANARY in spooled) == (prompts == "full")
        ledger.close()


def test_no_log_line_repeats_a_prompt(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ledger = Ledger(f"sqlite:///{path}", patience_s=0.05, spool_bytes=1)
    with locked(f"sqlite:///{path}"):
        write(ledger, prompt=CANARY)
    ledger.start(CANARY + "\0", DECISION, CANARY, NOW, reserve_nanousd=2**70)
    ledger.close()
    assert "dropped" in caplog.text
    assert CANARY not in caplog.text


def test_a_living_writers_spool_is_left_to_it(path: Path) -> None:
    url = f"sqlite:///{path}"
    ledger = Ledger(url, patience_s=0.05)
    with locked(url):
        write(ledger)
        spool = ledger._commits._spool.path
        Ledger(url).close()
        assert spool.exists()
    wait_until(lambda: ledger.waiting == 0)
    ledger.close()
    assert list(path.parent.iterdir()) == [path]


def test_what_is_written_after_closing_is_written_all_the_same(database_url: str) -> None:
    ledger = Ledger(database_url)
    request_id = new_id()
    ledger.start(request_id, DECISION, "x", NOW)
    ledger.close()
    ledger.finish(request_id, "answered", [attempt()], SOON)
    assert counts(ledger) == {"answered": 1, "attempts": 1}
    ledger.close()


def test_a_torn_last_line_of_a_spool_is_left_out_and_the_rest_is_written(path: Path) -> None:
    url = f"sqlite:///{path}"
    Ledger(url).close()
    with locked(url):
        subprocess.run(command(url, 3, 1), capture_output=True, timeout=60, check=True)
    [spool] = path.parent.glob("*-spool/*.jsonl")
    spool.write_bytes(spool.read_bytes()[:-10])
    ledger = Ledger(url)
    assert counts(ledger) == {"answered": 2, "interrupted": 1, "attempts": 2}
    ledger.close()
