"""A router under a day's spend ceiling: refused or stepped down before anything is sent, settled once it is known."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from books import counts
from conftest import CATALOG, HARD

from router_ml import Catalog, ConfigError, InputError, Ledger, Offer, RequestFailed, SpendCeilingReached, Tier, ceiling
from router_ml.audit import verify
from router_ml.simulator import Simulator

MakeRouter = Callable[..., Any]
HI = [{"role": "user", "content": "hi"}]
CALLS: dict[str, Callable[[Any], Any]] = {
    "complete": lambda router: router.complete("hi", "premium"),
    "stream": lambda router: list(router.stream("hi", "premium")),
    "create": lambda router: router.create(model="premium", messages=HI),
    "create-stream": lambda router: list(router.create(model="premium", messages=HI, stream=True)),
}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """The books, for tests that look into them after their router has closed its own."""
    ledger = Ledger(f"sqlite:///{tmp_path}/router.db")
    yield ledger
    assert ledger.dropped == 0
    assert verify(ledger.database).violations == ()
    ledger.close()


@pytest.mark.parametrize("call", CALLS)
def test_over_the_ceiling_nothing_is_sent_and_no_row_is_left(
    make_either: MakeRouter, simulator: Simulator, ledger: Ledger, call: str
) -> None:
    router = make_either(max_usd_per_day=Decimal(0), ledger=ledger)
    with pytest.raises(SpendCeilingReached):
        CALLS[call](router)
    assert simulator.requests == []
    assert counts(ledger) == {"attempts": 0}


@pytest.mark.parametrize("call", CALLS)
def test_what_a_request_reserved_is_settled_at_its_cost(make_either: MakeRouter, ledger: Ledger, call: str) -> None:
    router = make_either(max_usd_per_day=Decimal(1), ledger=ledger)
    CALLS[call](router)
    [row] = ledger.recent()
    assert row["status"] == "answered"
    assert row["charged_nanousd"] == row["cost_nanousd"] > 0
    assert ledger.spent_usd() == Decimal(row["cost_nanousd"]) / 10**9


def test_a_stream_that_is_left_is_charged_what_arrived(make_either: MakeRouter, ledger: Ledger) -> None:
    router = make_either(max_usd_per_day=Decimal(1), ledger=ledger)
    stream = router.stream("hi", "premium")
    next(stream)
    assert ledger.spent_usd() > Decimal("0.01")  # the worst case, while it runs
    stream.close()
    assert 0 < ledger.spent_usd() < Decimal("0.01")


def test_the_ceiling_stops_the_request_that_would_pass_it(make_either: MakeRouter, ledger: Ledger) -> None:
    router = make_either(max_usd_per_day=Decimal("0.005"), ceiling_output_tokens=60, ledger=ledger)
    CALLS["complete"](router)
    with pytest.raises(SpendCeilingReached) as refused:
        deque(CALLS["complete"](router) for _ in range(100))
    answered = counts(ledger)["answered"]
    assert 1 < answered < 100
    assert counts(ledger) == {"answered": answered, "attempts": answered}
    assert refused.value.spent_usd == ledger.spent_usd() <= Decimal("0.005")


def test_a_request_steps_down_to_a_tier_that_fits(make_either: MakeRouter, simulator: Simulator) -> None:
    assert make_either().decide(HARD, quality=1.0).tier > Tier.SIMPLE
    router = make_either(max_usd_per_day=Decimal("0.02"), on_ceiling="step_down")
    reply = router.complete(HARD, quality=1.0)
    assert reply.tier == reply.decision.tier == Tier.SIMPLE
    assert "ceiling" in reply.decision.reason
    assert router.ledger.recent()[0]["tier"] == "simple"
    assert simulator.requests[-1]["max_tokens"] == CATALOG.settings.ceiling_output_tokens
    with pytest.raises(SpendCeilingReached):
        router.complete(HARD, tier="premium")  # what was asked for is refused, not replaced


def test_a_stepped_down_request_is_never_answered_by_a_stronger_tier(make_either: MakeRouter) -> None:
    nobody = dict.fromkeys(CATALOG.providers, "http://127.0.0.1:9/v1")
    router = make_either(urls=nobody, max_usd_per_day=Decimal("0.02"), on_ceiling="step_down")
    with pytest.raises(RequestFailed) as failed:
        router.complete(HARD, quality=1.0)
    assert {attempt.offer.tier for attempt in failed.value.attempts} == {Tier.SIMPLE}


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 1_000_000},
        {"max_completion_tokens": 1_000_000},
        {"max_tokens": 9, "max_completion_tokens": 1_000_000},
        {"extra_body": {"max_tokens": 1_000_000}},
        {"n": 10_000},
        {"extra_body": {"n": 10_000}},
    ],
)
def test_no_argument_gets_round_the_ceiling(
    make_router: MakeRouter, simulator: Simulator, more: dict[str, Any]
) -> None:
    router = make_router(max_usd_per_day=Decimal(1))
    router.complete("hi", model="gpt-5.5")
    with pytest.raises(SpendCeilingReached):
        router.complete("hi", model="gpt-5.5", **more)
    assert len(simulator.requests) == 1


@pytest.mark.parametrize("more", [{"max_tokens": "9"}, {"max_tokens": -5}, {"n": 1.5}, {"extra_body": {"n": True}}])
def test_a_limit_that_is_none_is_refused_under_a_ceiling(make_router: MakeRouter, more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="whole number"):
        make_router(max_usd_per_day=Decimal(1)).complete("hi", **more)


def test_the_dearest_offer_counts_wherever_it_stands_since_a_breaker_may_pass_over_the_others() -> None:
    simple, premium = CATALOG.routed(Tier.SIMPLE)[0], CATALOG.routed(Tier.PREMIUM)[0]

    def most(*offers: Offer, calls: int) -> int:
        params = {"max_tokens": 500}
        at = datetime(2026, 1, 15, tzinfo=UTC)
        return ceiling.most_nanousd(offers, CATALOG.providers, HI, params, max_attempts=calls, at=at)

    assert most(simple, premium, calls=1) == most(premium, calls=1) > most(simple, calls=1)
    assert most(simple, calls=3) == 3 * most(simple, calls=1)


def test_a_ceiling_needs_prices(make_router: MakeRouter) -> None:
    unpriced = tuple(replace(offer, price=None, model="of no known price") for offer in CATALOG.offers)
    router = make_router(max_usd_per_day=Decimal(1), catalog=replace(CATALOG, offers=unpriced))
    with pytest.raises(ConfigError, match="nobody knows the price"):
        router.complete("hi", tier="simple")
    assert router.ledger.recent() == []


def test_a_negative_ceiling_is_refused_and_zero_is_a_ceiling(tmp_path: Path) -> None:
    path = tmp_path / "router.toml"
    path.write_text("[router]\nmax_usd_per_day = -1")
    with pytest.raises(ConfigError, match="max_usd_per_day"):
        Catalog.load(path)
    path.write_text("[router]\nmax_usd_per_day = 0")
    assert Catalog.load(path).settings.max_usd_per_day == 0
    assert CATALOG.settings.max_usd_per_day is None


@pytest.mark.parametrize("limit_usd", [None, Decimal(100), Decimal(0)])
@pytest.mark.parametrize("kind", ["complete", "stream"])
def test_wherever_a_request_is_cancelled_no_row_stays_open(
    build: MakeRouter, database_url: str, kind: str, limit_usd: Decimal | None
) -> None:
    driven = build(kind="async", ledger=Ledger(database_url), max_usd_per_day=limit_usd)
    driven.loop.set_exception_handler(lambda _loop, context: pytest.fail(str(context)))

    async def request() -> None:
        if kind == "complete":
            await driven.router.complete("hi", "simple")
        else:
            async with await driven.router.stream("hi", "simple") as stream:
                async for _ in stream:
                    pass

    async def cancelled_after(pauses_s: list[float], times: int) -> None:
        task = asyncio.ensure_future(request())
        for pause_s in pauses_s:
            await asyncio.sleep(pause_s)
        for _ in range(times):  # the second time while the first is being noted
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(task, return_exceptions=True)

    async def cancel_everywhere() -> None:
        turns = [[0.0] * count for count in range(25)]
        for pauses_s in [*turns, *([0.002 * count] for count in range(1, 16))]:
            await cancelled_after(pauses_s, 1)
            await cancelled_after(pauses_s, 2)
        await cancelled_after([], 0)

    driven.run(cancel_everywhere())
    ledger = driven.router.ledger
    ledger.close()  # what was still queued is written
    assert set(counts(ledger)) == ({"attempts"} if limit_usd == 0 else {"attempts", "interrupted", "answered"})
    assert ledger.dropped == 0
    assert verify(ledger.database).violations == ()
