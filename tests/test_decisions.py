"""The pure parts: policy, failover, pricing."""

from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from router_ml import Offer, Provider, Tier, Usage
from router_ml.breaker import Breaker, State
from router_ml.errors import ProviderError, ProviderUnavailable, RequestRejected, StreamInterrupted
from router_ml.failover import RetryBudget, Verdict, failover
from router_ml.policy import Calibration, Rates, choose, solve
from router_ml.pricing import cost
from router_ml.types import Price

RATES = {Tier.SIMPLE: Rates(1e-7, 1e-7), Tier.COMPLEX: Rates(1e-6, 1e-6), Tier.PREMIUM: Rates(1e-5, 1e-5)}
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def test_the_dearer_tier_is_chosen_only_where_it_is_worth_it() -> None:
    success = {Tier.SIMPLE: 0.5, Tier.COMPLEX: 0.8, Tier.PREMIUM: 0.9}
    cost_usd = {Tier.SIMPLE: 0.0, Tier.COMPLEX: 0.01, Tier.PREMIUM: 0.1}
    assert [choose(success, cost_usd, weight) for weight in (0, 2, 100)] == [Tier.PREMIUM, Tier.COMPLEX, Tier.SIMPLE]


def calibration() -> Calibration:
    needed = np.repeat([0, 1, 2], [60, 30, 10])
    quality = (np.arange(3) >= needed[:, None]).astype(float)
    return Calibration(0.1 + 0.8 * quality, quality, np.full(100, 50.0))


def test_the_quality_target_is_kept_and_a_lower_one_is_cheaper() -> None:
    full, less = (solve(calibration(), RATES, quality, 400) for quality in (1.0, 0.9))
    assert full.quality_kept == 1.0
    assert full.tier_shares == (0.6, 0.3, 0.1)
    assert less.quality_kept >= 0.9
    assert less.cost_share < full.cost_share < 1


def test_a_price_rise_resolves_the_weight() -> None:
    dearer = {**RATES, Tier.PREMIUM: Rates(1e-3, 1e-3)}
    assert solve(calibration(), dearer, 1.0, 400).price_weight < solve(calibration(), RATES, 1.0, 400).price_weight


A, B = (Offer(name, "m", Tier.SIMPLE) for name in "ab")


def drive(errors: list[Exception], *, attempts: int = 3, deadline_s: float = 10) -> list[tuple[str, float]]:
    clock = [0.0]
    plan = failover(
        [A, B],
        deadline_s=deadline_s,
        attempt_timeout_s=5,
        max_attempts=attempts,
        breaker=Breaker(failures=9, cooldown_s=9, now=lambda: clock[0]),
        budget=RetryBudget(),
        now=lambda: clock[0],
        jitter=lambda: 1.0,
    )
    made = []
    step = next(plan)
    for error in errors:
        clock[0] += step.delay_s + 1
        made.append((step.offer.provider, step.delay_s))
        try:
            step = plan.send(error)  # type: ignore[arg-type]
        except StopIteration:
            return made
    return [*made, (step.offer.provider, step.delay_s)]


def test_the_standby_comes_next_then_the_first_again_after_a_wait() -> None:
    failed = ProviderUnavailable("x")
    assert drive([failed, failed]) == [("a", 0.0), ("b", 0.0), ("a", 0.0)]
    assert len(drive([failed] * 9)) == 3


def test_a_rejected_request_and_a_passed_deadline_end_it() -> None:
    assert drive([RequestRejected("x")]) == [("a", 0.0)]
    assert drive([ProviderUnavailable("x")], deadline_s=1) == [("a", 0.0)]


def test_what_cannot_recover_is_not_tried_again() -> None:
    assert drive([ProviderUnavailable("x", retryable=False)] * 5) == [("a", 0.0), ("b", 0.0)]


@pytest.mark.parametrize(("asked", "attempts"), [(3.0, 3), (1e9, 2), (-1.0, 3)])
def test_retry_after_is_honoured_within_the_deadline(asked: float, attempts: int) -> None:
    assert len(drive([ProviderUnavailable("x", retry_after_s=asked)] * 5)) == attempts


def plan(offers: list[Offer], breaker: Breaker, budget: RetryBudget | None = None, **changes: Any) -> Any:
    limits: dict[str, Any] = {"deadline_s": 10, "attempt_timeout_s": 5, "max_attempts": 9} | changes
    return failover(offers, **limits, breaker=breaker, budget=budget or RetryBudget(), now=lambda: 0.0)


def closed(failures: int = 99) -> Breaker:
    return Breaker(failures=failures, cooldown_s=5, now=lambda: 0.0)


def test_extra_calls_stay_within_a_tenth_and_three_where_they_repeat_an_offer() -> None:
    budget, extra = RetryBudget(), 0
    for _ in range(1_000):
        steps = plan([A], closed(), budget)
        next(steps)
        with suppress(StopIteration):
            while steps.send(ProviderUnavailable("x", retry_after_s=0)):
                extra += 1
    assert 90 <= extra <= 103


def test_a_quiet_time_does_not_pay_for_a_storm() -> None:
    budget = RetryBudget()
    for _ in range(10_000):
        budget.request()
    assert sum(budget.extra_call(repeated=True) for _ in range(100)) == 10


def test_the_first_call_to_another_offer_is_never_refused() -> None:
    budget = RetryBudget()
    for _ in range(100):
        assert budget.extra_call(repeated=False)
    steps = plan([A, B], closed(), budget)
    next(steps)
    assert steps.send(ProviderUnavailable("x")).offer == B


def test_the_back_off_grows_and_is_jittered() -> None:
    delays = []
    for jitter in (0.0, 1.0):
        steps = plan([A], closed(), jitter=lambda jitter=jitter: jitter)
        next(steps)
        delays.append([steps.send(ProviderUnavailable("x")).delay_s for _ in range(3)])
    assert delays == [pytest.approx([0.1, 0.2, 0.4]), pytest.approx([0.2, 0.4, 0.8])]


def test_a_reply_that_was_not_good_enough_goes_to_a_stronger_tier_only() -> None:
    simple, other, premium = A, B, Offer("c", "m", Tier.PREMIUM)
    breaker = closed(failures=1)
    steps = plan([simple, other, premium], breaker)
    next(steps)
    assert steps.send(Verdict.REJECTED).offer == premium
    assert breaker.state(str(simple)) is State.CLOSED
    with pytest.raises(StopIteration):
        steps.send(Verdict.ANSWERED)


def test_an_open_offer_is_passed_over_and_closing_the_plan_frees_its_probe() -> None:
    breaker = Breaker(failures=1, cooldown_s=0, now=lambda: 0.0)
    permit = breaker.acquire(str(A))
    assert permit is not None
    breaker.settle(permit, failed=True)
    first, second = plan([A, B], breaker), plan([A, B], breaker)
    assert (next(first).offer, next(second).offer) == (A, B)  # the probe is out
    first.close()
    assert next(plan([A, B], breaker)).offer == A


@pytest.mark.parametrize("error", [RequestRejected("x"), StreamInterrupted("x", text="t")])
def test_what_cannot_be_gone_on_with_ends_it_and_only_a_broken_stream_counts(error: ProviderError) -> None:
    breaker = closed(failures=1)
    steps = plan([A, B], breaker)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send(error)
    assert breaker.state(str(A)) is (State.OPEN if isinstance(error, StreamInterrupted) else State.CLOSED)


SELLER = Provider("p", "http://p", price_provider="openai")


def test_cost_comes_from_the_provider_then_the_offer_then_the_list() -> None:
    usage = Usage(1_000_000, 1_000_000, cached_input_tokens=500_000)
    priced = Offer("p", "gpt-4o", Tier.SIMPLE, price=Price(Decimal(2), Decimal(3), Decimal(1)))
    listed = Offer("p", "gpt-4o", Tier.SIMPLE)
    assert cost(priced, SELLER, usage, NOON, reported_usd=Decimal("0.5")).usd == Decimal("0.5")
    assert cost(priced, SELLER, usage, NOON).usd == Decimal("4.5")
    assert cost(listed, SELLER, Usage(1_000_000, 1_000_000), NOON).usd == Decimal("12.5")


def test_an_unknown_cost_is_none_and_never_zero() -> None:
    unknown = Offer("p", "nobody-sells-this", Tier.SIMPLE)
    assert cost(unknown, SELLER, Usage(1, 1), NOON).usd is None
    assert cost(unknown, Provider("p", "http://p"), Usage(1, 1), NOON).usd is None
    assert cost(unknown, SELLER, None, NOON).usd is None
