"""The harness under load for long, and killed: python -m training.bench_soak soak [MINUTES [FAULT ...]] | kill [RUNS]

``soak``: 50 concurrent, providers take 250 ms, 5 % of the calls to each fail, or as the FAULTs say, one a provider of
the route ("" for none). Who was not answered, whether the ledger has a row for each request, and what memory did after
the first tenth. ``kill``: 1,000 requests at 50 concurrent, killed (SIGKILL) somewhere and resumed; whether an
acknowledged request is missing from the ledger, or one was made twice. Needs /proc.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, Popen

import sqlalchemy as sa

from router_ml.audit import verify
from router_ml.database import open_database
from router_ml.harness_journal import read
from router_ml.harness_report import Line, summarise
from router_ml.ledger import Ledger

CONCURRENT = 50
KILLED_OF = 1_000
FAULTS = ("503%5",)
LATENCY_MS = 250
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def harness(folder: Path, *length: str, faults: Sequence[str] = FAULTS) -> Popen[bytes]:
    """``router-ml harness`` in a process of its own, writing journal.jsonl and ledger.db in ``folder``."""
    code = "import sys; from router_ml.cli import main; sys.exit(main(sys.argv[1:]))"
    files = ["--out", str(folder / "journal.jsonl"), "--database", f"sqlite:///{folder.as_posix()}/ledger.db"]
    what = ["harness", "--simulate", "--faults", *faults, "--concurrency", str(CONCURRENT), *files, *length]
    return Popen([sys.executable, "-c", code, *what], stdout=DEVNULL, stderr=DEVNULL)  # noqa: S603 - our own code


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def rows(folder: Path) -> dict[str, str]:
    """Status by request id, from a ledger whose invariants hold."""
    url = f"sqlite:///{folder.as_posix()}/ledger.db"
    Ledger(url).close()  # what a crash left open becomes interrupted
    database = open_database(url, create=False)
    try:
        audit = verify(database)
        assert audit.sound, audit.violations
        with database.reading() as connection:
            found = connection.execute(sa.text("SELECT request_id, status FROM requests")).all()
        status = {row.request_id: row.status for row in found}
        assert len(status) == len(found) == audit.requests
        return status
    finally:
        database.engine.dispose()


def soak(minutes: float, faults: Sequence[str] = FAULTS) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began, sampled = time.monotonic(), list[tuple[float, int]]()
        with harness(folder, "--duration", f"{minutes}m", "--latency-ms", f"{LATENCY_MS}", faults=faults) as process:
            while process.poll() is None:
                sampled.append((time.monotonic() - began, resident_bytes(process.pid)))
                time.sleep(1.0)
        assert process.returncode == 0, process.returncode
        total = whole(folder)
        status = Counter(rows(folder).values())
    rate, missed = total.requests / (minutes * 60), total.requests - total.answered
    print(f"{total.requests:,} requests in {minutes:g} min at {CONCURRENT} concurrent ({rate:.0f}/s), ", end="")
    print(f"faults {list(faults)}: {missed} client errors; {total.failovers:,} failovers; ledger rows {dict(status)}")
    tenths = [[size for at, size in sampled[:-2] if int(10 * at / (minutes * 60)) == tenth] for tenth in range(10)]
    medians = [sorted(sizes)[len(sizes) // 2] / 1e6 for sizes in tenths if sizes]
    print(f"resident MB, median of each tenth: {' '.join(f'{size:.1f}' for size in medians)}: ", end="")
    print(f"{medians[-1] - medians[1]:+.1f} MB from the second to the last")


def kill(runs: int) -> None:
    chance = random.Random(0)  # noqa: S311 - a place to stop, no secret
    lost = doubled = left_open = acknowledged = 0
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            journal, stop_at = folder / "journal.jsonl", chance.randrange(20, KILLED_OF - 2 * CONCURRENT)
            with harness(folder, "--count", str(KILLED_OF)) as process:
                while lines(journal) <= stop_at and process.poll() is None:
                    time.sleep(0.002)
                process.kill()
            before = [measured.request_id for _, measured in read([journal])]
            status = rows(folder)
            acknowledged += len(before)
            lost += sum(status.get(request_id or "") not in ("answered", "failed") for request_id in before)
            left_open += sum(each == "interrupted" for each in status.values())
            with harness(folder, "--count", str(KILLED_OF)) as process:
                pass
            numbers = Counter(measured.number for _, measured in read([journal]))
            doubled += numbers.total() - len(numbers)
            assert process.returncode == 0, process.returncode
            assert set(numbers) == set(range(KILLED_OF)), "the resumed run left requests out"
            assert len(rows(folder)) <= KILLED_OF + CONCURRENT
    print(f"{runs} runs of {KILLED_OF:,} at {CONCURRENT} concurrent, killed and resumed: ", end="")
    print(f"{acknowledged:,} acknowledged before the kill, {lost} lost, {doubled} doubled; {left_open} were under way")


def whole(folder: Path) -> Line:
    return summarise(read([folder / "journal.jsonl"])).of("all")[0]


def resident_bytes(pid: int) -> int:
    """0 where it has just ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    what, amount = sys.argv[1], sys.argv[2:3]
    if what == "soak":
        soak(float(amount[0]) if amount else 10.0, sys.argv[3:] or FAULTS)
    else:
        kill(int(amount[0]) if amount else 20)
