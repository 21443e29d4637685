"""What ledger tests write: small requests with known costs, by this process or by one that is to be killed.

As a program: python books.py URL COUNT THREADS PROMPT writes COUNT requests from THREADS threads, and says on
standard output ``s ID`` when a start and ``f ID`` when a finish has returned.
"""

import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from router_ml.ledger import Ledger
from router_ml.types import Attempt, Cost, Decision, Offer, Tier, Usage

OFFER = Offer("maker", "model", Tier.SIMPLE)
DECISION = Decision(Tier.SIMPLE, (OFFER,), "a reason", policy_version="test")
NOW = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
SOON = NOW + timedelta(seconds=1)
USD = Decimal("0.000123456")
NANOUSD = 123_456


def attempt(usd: Decimal | None = USD, error: str | None = None, **changes: Any) -> Attempt:
    cost = Cost(usd, "offer" if usd is not None else None)
    return Attempt(changes.get("offer", OFFER), NOW, 12.5, Usage(10, 20), cost, error)


def new_id() -> str:
    return uuid.uuid4().hex


def write(ledger: Ledger, request_id: str | None = None, status: str = "answered", prompt: str = "a prompt") -> str:
    request_id = request_id or new_id()
    ledger.start(request_id, DECISION, prompt, NOW)
    ledger.finish(request_id, status, [attempt()], SOON)
    return request_id


def rows(ledger: Ledger, sql: str, **values: object) -> list[Any]:
    with ledger.database.reading() as connection:
        return [tuple(row) for row in connection.execute(sa.text(sql), values)]


def counts(ledger: Ledger) -> dict[str, int]:
    """Requests by status, and how many attempts there are."""
    by_status = dict(rows(ledger, "SELECT status, count(*) FROM requests GROUP BY status"))
    [(attempts,)] = rows(ledger, "SELECT count(*) FROM attempts")
    return {**by_status, "attempts": attempts}


def in_threads(threads: int, work: Iterable[Any]) -> None:
    """Call every item of ``work`` on one of so many threads, and raise what any of them raised."""
    left = iter(list(work))
    lock = threading.Lock()
    failures: list[BaseException] = []

    def run() -> None:
        while True:
            with lock:
                call = next(left, None)
            if call is None:
                return
            try:
                call()
            except BaseException as exc:
                failures.append(exc)
                return

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failures:
        raise failures[0]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def command(url: str, count: int, threads: int, prompt: str = "a prompt") -> list[str]:
    return [sys.executable, str(Path(__file__)), url, str(count), str(threads), prompt]


def main() -> None:
    url, count, threads, prompt = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    ledger = Ledger(url)

    def one() -> None:
        request_id = new_id()
        ledger.start(request_id, DECISION, prompt, NOW)
        os.write(1, f"s {request_id}\n".encode())
        ledger.finish(request_id, "answered", [attempt()], SOON)
        os.write(1, f"f {request_id}\n".encode())

    in_threads(threads, [one] * count)
    ledger.close()


if __name__ == "__main__":
    main()
