"""L1, L2 of FAULTS.md: a process that writes a ledger is ended, and nothing it had acknowledged is lost."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from books import command, rows

from router_ml.audit import verify
from router_ml.ledger import Ledger
from router_ml.simulator import Simulator


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
