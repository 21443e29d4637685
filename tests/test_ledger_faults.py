"""The ledger's rows of FAULTS.md: crashes, locks, full disks, damaged files, cut connections."""

import asyncio
import logging
import os
import random
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from books import DECISION, NOW, SOON, USD, attempt, command, counts, in_threads, new_id, rows, write

from router_ml.audit import verify
from router_ml.database import open_database
from router_ml.errors import LedgerError
from router_ml.ledger import Ledger
from router_ml.simulator import Simulator

CANARY = "prompt-canary-31415"


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def end_after(code: list[str], how: signal.Signals, after: int) -> tuple[set[str], set[str]]:
    """Start a process that writes and end it after so many acknowledgements; the ids it had acknowledged."""
    started, finished = set(), set()
    tests = Path(__file__).parent
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True, cwd=tests) as process:
        assert process.stdout is not None
        for number, line in enumerate(process.stdout, 1):
            if number == after:
                process.send_signal(how)
            if line.endswith("\n"):
                (started if line[0] == "s" else finished).add(line[2:-1])
    return started, finished


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["L1-kill", "L2-term"])
@pytest.mark.parametrize("size", [(200, 2), pytest.param((1_000, 20), marks=pytest.mark.slow)])
def test_l1_l2_a_killed_process_loses_no_acknowledged_row(
    database_url: str, how: signal.Signals, size: tuple[int, int]
) -> None:
    requests, runs = size
    Ledger(database_url).close()
    chance = random.Random(7)
    started, finished = set[str](), set[str]()
    for _ in range(runs):
        more = end_after(command(database_url, requests, 50), how, chance.randrange(20, 2 * requests - 60))
        started |= more[0]
        finished |= more[1]
        Ledger(database_url).close()
    ledger = Ledger(database_url)
    status = dict(rows(ledger, "SELECT request_id, status FROM requests"))
    assert started <= set(status)
    assert {status[request_id] for request_id in finished} == {"answered"}
    assert set(status.values()) <= {"answered", "interrupted"}
    attempts = rows(ledger, "SELECT request_id, count(*) FROM attempts GROUP BY request_id")
    assert {number for _, number in attempts} == {1}
    assert {request_id for request_id, _ in attempts} == {i for i, s in status.items() if s == "answered"}
    assert len(finished) < requests * runs, "no process was stopped in time to show anything"
    ledger.close()


ROUTER = """
import os, sys
from dataclasses import replace
from books import in_threads
from router_ml import Catalog, Ledger, Router
url, base_url, count = sys.argv[1:]
catalog = Catalog.load()
providers = {n: replace(p, base_url=base_url, key_env=None) for n, p in catalog.providers.items()}
router = Router(replace(catalog, providers=providers), ledger=Ledger(url))
in_threads(50, [lambda: os.write(1, f"f {router.complete('hello').request_id}\\n".encode())] * int(count))
"""


@pytest.mark.parametrize("size", [(200, 1), pytest.param((1_000, 20), marks=pytest.mark.slow)])
def test_l1_a_killed_router_leaves_no_answer_and_no_bill_out_of_the_books(
    database_url: str, simulator: Simulator, size: tuple[int, int]
) -> None:
    requests, runs = size
    Ledger(database_url).close()
    chance = random.Random(11)
    answered = set[str]()
    for _ in range(runs):
        code = [sys.executable, "-c", ROUTER, database_url, simulator.base_url, str(requests)]
        answered |= end_after(code, signal.SIGKILL, chance.randrange(10, requests - 60))[1]
        Ledger(database_url).close()
    ledger = Ledger(database_url)
    status = dict(rows(ledger, "SELECT request_id, status FROM requests"))
    assert {status[request_id] for request_id in answered} == {"answered"}
    assert set(status.values()) == {"answered", "interrupted"}
    assert len(simulator.requests) <= len(status), "a provider was called for a request that no row knows of"
    assert verify(ledger.database).violations == ()
    ledger.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{path}", patience_s=0.1)
    yield opened
    opened.close()


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Another program holds the database."""
    if url.startswith("sqlite"):
        other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
        other.close()
        return
    with psycopg.connect(url.replace("+psycopg", "")) as server:
        server.execute("LOCK TABLE requests IN EXCLUSIVE MODE")
        yield
        server.rollback()


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
    assert slowest_s < 0.5
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
    ledger = Ledger(database_url, patience_s=0.3)
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
        assert asyncio.run(longest_pause_s()) < 0.15
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


@contextmanager
def admin(url: str) -> Iterator[Callable[[str], object]]:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        yield lambda sql: connection.execute(sql)


KILL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE pid <> pg_backend_pid() AND datname = current_database()"
)


@pytest.mark.parametrize("requests", [300, pytest.param(5_000, marks=pytest.mark.slow)])
def test_l10_killed_backends_lose_and_double_nothing(postgresql_url: str, requests: int) -> None:
    ledger = Ledger(postgresql_url)
    done: list[str] = []
    with admin(postgresql_url) as sql:
        work = [lambda: done.append(write(ledger))] * requests
        for i in range(0, requests, 50):
            work[i] = lambda: sql(KILL)
        in_threads(16, work)
    wait_until(lambda: ledger.waiting == 0)
    assert counts(ledger) == {"answered": len(done), "attempts": len(done)}
    assert ledger.spent_usd(NOW.date()) == sum((attempt().cost.usd or 0) for _ in done)
    assert ledger.dropped == 0
    ledger.close()


class CuttingProxy:
    """Forwards a TCP port to the server's unix socket; while ``cut`` is set, it lets a COMMIT through, waits for the
    server's answer and closes the connection instead of handing it on."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut = False
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._socket_path)
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65_536)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
                    if source is client and self.cut and b"COMMIT" in data:
                        server.recv(65_536)
                        self.cuts += 1
                        return


def test_l10_commits_whose_answers_are_lost_are_not_doubled(postgresql_url: str) -> None:
    proxy = CuttingProxy(f"{postgresql_url.partition('host=')[2]}/.s.PGSQL.5432")
    ledger = Ledger(f"postgresql+psycopg://router@127.0.0.1:{proxy.port}/postgres")
    write(ledger)
    for _ in range(5):
        proxy.cut = True
        request_id = new_id()
        ledger.start(request_id, DECISION, "x", NOW, reserve_nanousd=10**9)
        ledger.finish(request_id, "answered", [attempt()], SOON)
        proxy.cut = False
        wait_until(lambda: ledger.waiting == 0)
    in_threads(16, [lambda: write(ledger)] * 100)
    assert proxy.cuts >= 5
    assert counts(ledger) == {"answered": 106, "attempts": 106}
    assert ledger.spent_usd(NOW.date()) == 106 * USD
    assert verify(ledger.database).violations == ()
    ledger.close()
    proxy.close()


def test_l10_a_server_that_is_gone_for_a_while_gets_every_row(postgresql_url: str) -> None:
    ledger = Ledger(postgresql_url)
    write(ledger)
    with admin(postgresql_url.replace("/postgres?", "/template1?")) as sql:
        sql("ALTER DATABASE postgres ALLOW_CONNECTIONS false")
        sql(KILL.replace("current_database()", "'postgres'"))
        in_threads(8, [lambda: write(ledger)] * 40)
        assert ledger.waiting == 80
        sql("ALTER DATABASE postgres ALLOW_CONNECTIONS true")
    wait_until(lambda: ledger.waiting == 0)
    assert counts(ledger) == {"answered": 41, "attempts": 41}
    ledger.close()
