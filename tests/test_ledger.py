"""What a ledger promises while its database works, on SQLite and on PostgreSQL."""

import asyncio
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from books import DECISION, NANOUSD, NOW, OFFER, SOON, USD, attempt, command, counts, in_threads, new_id, rows, write

from router_ml import checkpoint
from router_ml.audit import verify
from router_ml.errors import InputError, LedgerError
from router_ml.ledger import Ledger
from router_ml.types import Complexity, Outcome, Tier


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    opened = Ledger(database_url)
    yield opened
    opened.close()


def test_a_row_is_committed_before_the_call_and_completed_after_it(ledger: Ledger) -> None:
    request_id = new_id()
    ledger.start(request_id, DECISION, "a prompt", NOW)
    assert rows(ledger, "SELECT request_id, status, cost_nanousd FROM requests") == [(request_id, "started", None)]
    ledger.finish(request_id, "answered", [attempt(Decimal(0), "refused"), attempt()], SOON)
    [row] = ledger.recent()
    assert (row["status"], row["attempts"], row["cost_nanousd"]) == ("answered", 2, NANOUSD)
    assert (row["started_at"], row["finished_at"]) == (NOW, SOON)


def test_everything_known_of_a_decision_is_kept(ledger: Ledger) -> None:
    success = {Tier.SIMPLE: 0.25, Tier.COMPLEX: 0.5, Tier.PREMIUM: 1.0}
    ledger.start(new_id(), replace(DECISION, complexity=Complexity(success, "c1"), quality=0.9), "x", NOW)
    kept = "success_simple, success_complex, success_premium, classifier_version, quality, propensity, policy_version"
    assert rows(ledger, f"SELECT {kept} FROM requests") == [(0.25, 0.5, 1.0, "c1", 0.9, 1.0, "test")]


@pytest.mark.parametrize(
    ("attempts", "status", "cost"),
    [
        ([], "failed", None),
        ([None], "answered", None),
        ([USD, None], "answered", None),
        ([None, USD], "answered", NANOUSD),
        ([USD, USD], "failed", 2 * NANOUSD),
        ([Decimal("1e300")], "answered", None),
    ],
)
def test_an_unknown_cost_is_null_and_never_zero(
    ledger: Ledger, attempts: list[Decimal | None], status: str, cost: int | None
) -> None:
    request_id = new_id()
    ledger.start(request_id, DECISION, "x", NOW)
    ledger.finish(request_id, status, [attempt(usd) for usd in attempts], SOON)
    assert rows(ledger, "SELECT status, cost_nanousd FROM requests") == [(status, cost)]


def test_writing_an_entry_again_changes_nothing(ledger: Ledger) -> None:
    request_id = write(ledger)
    spent = ledger.spent_usd(NOW.date())
    ledger.start(request_id, DECISION, "another prompt", NOW)
    ledger.finish(request_id, "failed", [attempt(), attempt()], SOON)
    assert counts(ledger) == {"answered": 1, "attempts": 1}
    assert ledger.spent_usd(NOW.date()) == spent == USD
    assert ledger.dropped == 0


def test_finishing_again_does_not_settle_a_reservation_twice(ledger: Ledger) -> None:
    request_id = new_id()
    for _ in range(2):
        ledger.start(request_id, DECISION, "x", NOW, reserve_nanousd=10**9)
        ledger.finish(request_id, "failed", [], SOON)
    assert ledger.spent_usd(NOW.date()) == 0
    assert verify(ledger.database).violations == ()


def test_one_row_the_database_refuses_does_not_take_its_batch_with_it(ledger: Ledger) -> None:
    bad = replace(DECISION, propensity=None)  # type: ignore[arg-type]
    in_threads(8, [partial(ledger.start, new_id(), DECISION if i else bad, "x", NOW) for i in range(40)])
    assert counts(ledger) == {"started": 39, "attempts": 0}
    assert ledger.dropped == 1


def test_a_finish_without_its_start_is_counted_as_dropped(ledger: Ledger) -> None:
    ledger.finish(new_id(), "answered", [attempt()], SOON)
    assert counts(ledger) == {"attempts": 0}
    assert ledger.dropped == 1


def test_l9_hostile_text_is_stored_the_same_everywhere(ledger: Ledger) -> None:
    hostile = "a\0b\ud800c\U0001f600"
    offer = replace(OFFER, model=hostile * 100)
    request_id = new_id()
    ledger.start(request_id, replace(DECISION, reason=hostile), hostile, NOW)
    ledger.finish(request_id, "failed", [attempt(None, hostile, offer=offer)], SOON)
    clean = "a\ufffdb\ufffdc\U0001f600"
    assert rows(ledger, "SELECT prompt, reason FROM requests") == [(clean, clean)]
    assert rows(ledger, "SELECT error, model FROM attempts") == [(clean, (clean * 100)[:255])]
    assert ledger.dropped == 0


def test_threads_share_commits_and_every_row_is_there(ledger: Ledger) -> None:
    in_threads(50, [partial(write, ledger)] * 500)
    assert counts(ledger) == {"answered": 500, "attempts": 500}
    assert ledger.spent_usd(NOW.date()) == 500 * USD
    assert (ledger.dropped, ledger.waiting) == (0, 0)


def test_event_loops_and_threads_share_one_ledger(ledger: Ledger) -> None:
    async def one() -> None:
        request_id = new_id()
        await ledger.start_async(request_id, DECISION, "x", NOW)
        await ledger.finish_async(request_id, "answered", [attempt()], SOON)

    async def many() -> None:
        await asyncio.gather(*(one() for _ in range(100)))

    loops = [partial(asyncio.run, many()) for _ in range(3)]
    in_threads(8, [*loops, *[partial(write, ledger)] * 100])
    assert counts(ledger) == {"answered": 400, "attempts": 400}


def test_a_cancelled_caller_does_not_lose_its_row(ledger: Ledger) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(ledger.start_async(new_id(), DECISION, "x", NOW))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ledger.start_async(new_id(), DECISION, "x", NOW)

    asyncio.run(cancelled())
    assert counts(ledger) == {"started": 2, "attempts": 0}


def test_l11_ten_thousand_and_one_pending_rows_are_all_flushed(ledger: Ledger) -> None:
    commits = ledger._commits
    commits._lock.acquire()  # as if one long commit were under way
    threads = []
    ids = [new_id() for _ in range(10_001)]

    async def all_at_once() -> None:
        tasks = [asyncio.ensure_future(ledger.start_async(i, DECISION, "x", NOW)) for i in ids]
        await asyncio.sleep(0)
        threads.append(len(commits._queue))
        commits._lock.release()
        await asyncio.gather(*tasks)

    asyncio.run(all_at_once())
    assert threads == [10_001]
    assert counts(ledger) == {"started": 10_001, "attempts": 0}


def test_only_known_requests_are_judged_and_the_later_word_counts(ledger: Ledger) -> None:
    request_id = write(ledger)
    for score in (0.25, 0.75):
        ledger.add_outcome(Outcome(request_id, score, "user", SOON))
    assert [(row["prompt"], row["score"]) for row in ledger.judged()] == [("a prompt", 0.75)]
    with pytest.raises(LedgerError, match="no request 'nobody'"):
        ledger.add_outcome(Outcome("nobody", 0.5, "user", SOON))
    with pytest.raises(InputError, match="outside"):
        ledger.add_outcome(Outcome(request_id, 1.5, "user", SOON))


def test_a_days_spend_is_what_its_requests_cost(ledger: Ledger) -> None:
    write(ledger)
    request_id = new_id()
    ledger.start(request_id, DECISION, "x", datetime(2026, 1, 14, 23, 59, tzinfo=UTC))
    ledger.finish(request_id, "answered", [attempt(), attempt()], NOW)  # ended the day after it was started
    assert ledger.spent_usd(date(2026, 1, 14)) == 2 * USD
    assert ledger.spent_usd(NOW.date()) == USD
    assert ledger.spent_usd(date(2026, 1, 13)) == 0


def test_rows_of_a_dead_process_become_interrupted_and_a_living_ones_do_not(database_url: str) -> None:
    living = Ledger(database_url)
    living.start(new_id(), DECISION, "x", NOW)
    code = f"import os\nfrom books import *\nLedger({database_url!r}).start(new_id(), DECISION, 'x', NOW)\nos._exit(1)"
    subprocess.run([*command("", 0, 0)[:1], "-c", code], cwd=Path(__file__).parent, check=False)
    assert counts(living) == {"started": 2, "attempts": 0}
    opened = Ledger(database_url)
    assert counts(opened) == {"started": 1, "interrupted": 1, "attempts": 0}
    assert rows(opened, "SELECT count(*) FROM writers") == [(1,)]
    opened.close()
    living.close()


def test_an_answer_overrules_interrupted(ledger: Ledger) -> None:
    request_id = new_id()
    ledger.start(request_id, DECISION, "x", NOW, reserve_nanousd=10**9)
    with ledger.database.writing() as connection:
        connection.exec_driver_sql("UPDATE requests SET status = 'interrupted'")
    ledger.finish(request_id, "answered", [attempt()], SOON)
    assert counts(ledger) == {"answered": 1, "attempts": 1}
    assert ledger.spent_usd(NOW.date()) == USD


@pytest.mark.parametrize("size", [(2, 4, 50), pytest.param((4, 8, 1_000), marks=pytest.mark.slow)])
def test_l7_processes_and_threads_write_one_ledger_together(
    database_url: str, size: tuple[int, int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    processes, threads, each = size
    Ledger(database_url).close()
    running = [
        subprocess.Popen(command(database_url, threads * each, threads), stdout=subprocess.DEVNULL)
        for _ in range(processes)
    ]
    assert [process.wait() for process in running] == [0] * processes
    ledger = Ledger(database_url)
    total = processes * threads * each
    assert counts(ledger) == {"answered": total, "attempts": total}
    assert rows(ledger, "SELECT * FROM writers") == []
    ledger.close()
    assert "locked" not in capfd.readouterr().err


def test_a_forked_child_writes_with_a_connection_of_its_own(ledger: Ledger) -> None:
    import multiprocessing

    write(ledger)
    child = multiprocessing.get_context("fork").Process(target=write, args=(ledger,))
    child.start()
    child.join(30)
    write(ledger)
    assert child.exitcode == 0
    assert counts(ledger) == {"answered": 3, "attempts": 3}
    assert rows(ledger, "SELECT count(*) FROM writers") == [(2,)]


def test_sqlites_log_is_moved_into_the_file_while_commits_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_EVERY_COMMITS", 20)
    path = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{path}")
    empty_bytes = path.stat().st_size
    for _ in range(200):  # far from the size at which a commit would do it itself
        write(ledger, prompt="long " * 500)
    end = time.monotonic() + 10
    while path.stat().st_size == empty_bytes and time.monotonic() < end:
        time.sleep(0.01)
    assert path.stat().st_size > empty_bytes
    ledger.close()
    assert list(tmp_path.iterdir()) == [path]
