"""The ledger's side of a spend ceiling: reserved with the start, settled with the finish, held across processes."""

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from books import DECISION, NOW, SOON, USD, attempt, counts, in_threads, new_id, wait_until
from databases import locked

from router_ml import Ledger, SpendCeilingReached
from router_ml.audit import verify
from router_ml.simulator import Simulator

MILLI = 1_000_000  # nano-USD in a thousandth of a dollar


def start(ledger: Ledger, reserve: int, ceiling: int) -> str:
    request_id = new_id()
    ledger.start(request_id, DECISION, "x", NOW, reserve_nanousd=reserve, ceiling_nanousd=ceiling)
    return request_id


def test_a_request_that_does_not_fit_is_refused_with_the_figures(database_url: str) -> None:
    ledger = Ledger(database_url)
    ledger.finish(start(ledger, 3 * MILLI, 10 * MILLI), "answered", [attempt()], SOON)
    start(ledger, 5 * MILLI, 10 * MILLI)
    with pytest.raises(SpendCeilingReached) as caught:
        start(ledger, 5 * MILLI, 10 * MILLI)
    error = caught.value
    assert (error.limit_usd, error.spent_usd, error.reserved_usd) == (Decimal("0.01"), USD, Decimal("0.005"))
    assert error.needed_usd == Decimal("0.005")
    assert counts(ledger) == {"answered": 1, "started": 1, "attempts": 1}
    start(ledger, 4 * MILLI, 10 * MILLI)
    assert verify(ledger.database).violations == ()
    ledger.close()


@pytest.mark.parametrize(
    ("status", "costs", "charged"),
    [
        ("answered", [USD], USD),
        ("failed", [], Decimal(0)),
        ("failed", [None], Decimal(1)),  # it may have been billed
        ("answered", [None, USD], Decimal(1)),
        ("answered", [Decimal(2)], Decimal(2)),
    ],
)
def test_what_may_have_been_billed_stays_charged(
    database_url: str, status: str, costs: list[Decimal | None], charged: Decimal
) -> None:
    ledger = Ledger(database_url)
    request_id = start(ledger, 1_000 * MILLI, 5_000 * MILLI)
    ledger.finish(request_id, status, [attempt(usd) for usd in costs], SOON)
    assert ledger.spent_usd(NOW.date()) == charged
    ledger.close()


def test_threads_cannot_pass_the_ceiling_together(database_url: str) -> None:
    ledger = Ledger(database_url)
    refused: list[SpendCeilingReached] = []

    def one() -> None:
        try:
            start(ledger, 3 * MILLI, 100 * MILLI)
        except SpendCeilingReached as exc:
            refused.append(exc)

    in_threads(20, [one] * 100)
    assert (counts(ledger)["started"], len(refused)) == (33, 67)
    ledger.close()


def test_writers_with_connections_of_their_own_cannot_pass_the_ceiling_together(database_url: str) -> None:
    ledgers = [Ledger(database_url, patience_s=10.0) for _ in range(6)]
    refused: list[SpendCeilingReached] = []

    def one(ledger: Ledger) -> None:
        try:
            start(ledger, 3 * MILLI, 150 * MILLI)
        except SpendCeilingReached as exc:
            refused.append(exc)

    in_threads(6, [partial(one, ledger) for _ in range(40) for ledger in ledgers])
    assert all(exc.spent_usd is not None for exc in refused)
    assert (counts(ledgers[0])["started"], len(refused)) == (50, 190)
    for ledger in ledgers:
        ledger.close()


def test_a_ceiling_is_kept_and_leaves_no_open_row_while_the_ledger_cannot_be_read(database_url: str) -> None:
    ledger = Ledger(database_url, patience_s=0.05)
    start(ledger, MILLI, 100 * MILLI)
    with locked(database_url):
        for _ in range(3):
            with pytest.raises(SpendCeilingReached, match="the ledger cannot be read") as caught:
                start(ledger, MILLI, 100 * MILLI)
            assert caught.value.spent_usd is None
    wait_until(lambda: ledger.waiting == 0)
    start(ledger, MILLI, 100 * MILLI)
    assert counts(ledger) == {"started": 2, "attempts": 0}
    assert ledger.dropped == 0
    ledger.close()


def test_an_interrupted_request_stays_charged(database_url: str) -> None:
    ledger = Ledger(database_url)
    code = f"import os\nfrom books import *\nledger = Ledger({database_url!r})\n"
    code += "ledger.start(new_id(), DECISION, 'x', NOW, reserve_nanousd=7_000_000)\nos._exit(1)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    Ledger(database_url).close()
    assert counts(ledger) == {"interrupted": 1, "attempts": 0}
    assert ledger.spent_usd(NOW.date()) == Decimal("0.007")
    assert verify(ledger.database).violations == ()
    ledger.close()


PREMIUM = """
import sys
from dataclasses import replace
from decimal import Decimal
from functools import partial
from books import in_threads
from router_ml import Catalog, ComplexityClassifier, Ledger, Router, SpendCeilingReached
url, base_url, limit, count = sys.argv[1:]
catalog = Catalog.load()
providers = {n: replace(p, base_url=base_url, key_env=None) for n, p in catalog.providers.items()}
settings = replace(catalog.settings, max_usd_per_day=Decimal(limit), ceiling_output_tokens=60)
router = Router(replace(catalog, providers=providers, settings=settings), ledger=Ledger(url))
answered, refused = [], []
def one():
    try:
        answered.append(router.complete("push me up " * 20, tier="premium").cost_usd)
    except SpendCeilingReached as exc:
        refused.append(exc)
in_threads(8, [one] * int(count))
router.close()
print(sum(answered), len(answered), len(refused))
"""


@pytest.mark.parametrize("size", [(2, 30), pytest.param((4, 250), marks=pytest.mark.slow)])
def test_processes_that_push_every_prompt_to_premium_stay_under_one_ceiling(
    database_url: str, simulator: Simulator, size: tuple[int, int]
) -> None:
    processes, each = size
    Ledger(database_url).close()
    one_usd = Decimal("0.0005")  # about what the loopback provider's answers cost at premium's price
    limit = one_usd * processes * each / 4
    command = [sys.executable, "-c", PREMIUM, database_url, simulator.base_url, str(limit), str(each)]
    running = [
        subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    said = [process.communicate()[0].split() for process in running]
    spent = sum(Decimal(cost) for cost, _, _ in said)
    answered, refused = (sum(int(words[i]) for words in said) for i in (1, 2))
    assert answered + refused == processes * each
    assert answered > 0
    assert refused > 0
    assert len(simulator.requests) == answered
    ledger = Ledger(database_url)
    today = datetime.now(UTC).date()
    assert 0 < ledger.spent_usd(today) == spent <= limit
    assert counts(ledger) == {"answered": answered, "attempts": answered}
    assert verify(ledger.database).violations == ()
    ledger.close()
