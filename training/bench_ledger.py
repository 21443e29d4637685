"""What the ledger costs, on this machine, from one run: python -m training.bench_ledger [URL]

Start + finish of one request at a time; then requests a second from 1 and from 50 threads, and from 50 tasks of one
event loop, which show what sharing a commit saves.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np

from router_ml import Attempt, Cost, Decision, Ledger, Offer, Tier, Usage

REQUESTS = 3_000
_OFFER = Offer("provider", "model", Tier.SIMPLE)
_DECISION = Decision(Tier.SIMPLE, (_OFFER,), "success 0.91, 0.93, 0.97; best worth its price", policy_version="bench")
_PROMPT = "Explain vector databases in three sentences, with one example of each kind. " * 3


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for synchronous in ("NORMAL", "FULL"):
            url = sys.argv[1] if len(sys.argv) > 1 else f"sqlite:///{Path(folder).as_posix()}/{synchronous}.db"
            ledger = Ledger(url, synchronous="FULL" if synchronous == "FULL" else "NORMAL")
            count = REQUESTS if synchronous == "NORMAL" else REQUESTS // 6
            times = [_timed(lambda ledger=ledger: _request(ledger)) for _ in range(count)]  # type: ignore[misc]
            what = f"{ledger.database.name.partition(':')[0]}, synchronous={synchronous}"
            print(f"{what}: start + finish p50 {_us(times, 50)}, p99 {_us(times, 99)}, max {_us(times, 100)}")
            print(f"  1 thread: {len(times) / sum(times):,.0f} requests a second, two commits each")
            print(f"  50 threads: {_threads(ledger, count):,.0f} requests a second")
            print(f"  50 tasks of a loop: {asyncio.run(_tasks(ledger, count)):,.0f} requests a second")
            ledger.close()
            if len(sys.argv) > 1:
                return


def _request(ledger: Ledger) -> None:
    request_id, now = uuid.uuid4().hex, datetime.now(UTC)
    ledger.start(request_id, _DECISION, _PROMPT, now)
    ledger.finish(request_id, "answered", [_attempt(now)], now)


async def _request_async(ledger: Ledger) -> None:
    request_id, now = uuid.uuid4().hex, datetime.now(UTC)
    await ledger.start_async(request_id, _DECISION, _PROMPT, now)
    await ledger.finish_async(request_id, "answered", [_attempt(now)], now)


def _attempt(now: datetime) -> Attempt:
    return Attempt(_OFFER, now, 800.0, Usage(60, 120), Cost(Decimal("0.000042"), "offer"))


def _threads(ledger: Ledger, count: int) -> float:
    def work() -> None:
        for _ in range(count // 50):
            _request(ledger)

    threads = [threading.Thread(target=work) for _ in range(50)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (time.perf_counter() - started)


async def _tasks(ledger: Ledger, count: int) -> float:
    async def work() -> None:
        for _ in range(count // 50):
            await _request_async(ledger)

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(50)))
    return count / (time.perf_counter() - started)


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _us(times: list[float], percentile: float) -> str:
    return f"{np.percentile(times, percentile) * 1e6:,.0f} us"


if __name__ == "__main__":
    main()
