"""Rows B1 to B7 of the fault list, and the breaker's promises as a state machine."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router_ml import AsyncRouter, RequestFailed, StreamInterrupted
from router_ml.breaker import Breaker, Permit, State
from router_ml.simulator import Simulator

MakeRouter = Callable[..., Any]
KEY = "global-api/deepseek-v4-flash"


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0  # a time like any other

    def __call__(self) -> float:
        return self.now_s


def breaker(failures: int = 3, cooldown_s: float = 10.0) -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(failures=failures, cooldown_s=cooldown_s, now=clock), clock


def call(b: Breaker, *, failed: bool | None, key: str = "k") -> None:
    permit = b.acquire(key)
    assert permit is not None
    b.settle(permit, failed=failed)


def opened(cooldown_s: float = 10.0) -> tuple[Breaker, Clock]:
    b, clock = breaker(cooldown_s=cooldown_s)
    for _ in range(3):
        call(b, failed=True)
    assert b.state("k") is (State.OPEN if cooldown_s else State.HALF_OPEN)
    return b, clock


def test_a_few_failures_among_successes_do_not_open_it() -> None:
    b, _ = breaker()
    for number in range(1_000):
        call(b, failed=number % 10 == 0)
    assert b.state("k") is State.CLOSED


def test_half_of_the_calls_failing_opens_it() -> None:
    b, _ = breaker()
    for number in range(6):
        call(b, failed=number % 2 == 1)
    assert b.state("k") is State.OPEN
    assert b.acquire("k") is None
    assert b.acquire("another") is not None


def test_a_success_of_the_probe_closes_it_and_a_failure_opens_it_again() -> None:
    for failed, state in ((False, State.CLOSED), (True, State.OPEN)):
        b, clock = opened()
        clock.now_s += 10
        call(b, failed=failed)
        assert b.state("k") is state


def test_b1_of_50_threads_exactly_one_gets_the_probe() -> None:
    b, clock = opened()
    clock.now_s += 10
    with ThreadPoolExecutor(50) as pool:
        permits = list(pool.map(lambda _: b.acquire("k"), range(50)))
    assert sum(permit is not None for permit in permits) == 1


def test_b1_of_50_concurrent_requests_exactly_one_probes(make_router: MakeRouter, simulator: Simulator) -> None:
    driven = make_router(kind="async", breaker_cooldown_s=0.0)
    router: AsyncRouter = driven.router
    simulator._latency_s = 0.05
    for _ in range(5):
        permit = router.breaker.acquire(KEY, force=True)
        assert permit is not None
        router.breaker.settle(permit, failed=True)

    async def burst() -> None:
        await asyncio.gather(*(router.complete("hi", "simple") for _ in range(50)))

    driven.run(burst())
    to_primary = [body for body in simulator.requests if "thinking" not in body]
    assert len(simulator.requests) == 50
    assert len(to_primary) == 1
    assert router.breaker.state(KEY) is State.CLOSED


def test_b2_a_cancelled_probe_frees_its_slot() -> None:
    b, clock = opened()
    clock.now_s += 10
    call(b, failed=None)
    assert b.state("k") is State.HALF_OPEN
    assert b.acquire("k") is not None


def test_b2_a_cancelled_request_frees_the_probe(make_router: MakeRouter) -> None:
    driven = make_router({"global-api": "stall"}, kind="async", breaker_cooldown_s=0.0, breaker_failures=1)
    key = f"{KEY}!stall"
    permit = driven.breaker.acquire(key)
    driven.breaker.settle(permit, failed=True)

    async def leave() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await driven.router.complete("hi", "simple")

    driven.run(leave())
    assert driven.breaker.acquire(key).probe
    assert driven.ledger.recent()[0]["status"] == "interrupted"


def test_b3_a_stale_success_does_not_close_it() -> None:
    b, clock = breaker()
    early = b.acquire("k")
    assert early is not None
    for _ in range(3):
        call(b, failed=True)
    b.settle(early, failed=False)
    assert b.state("k") is State.OPEN
    clock.now_s += 10
    b.settle(early, failed=False)
    assert b.state("k") is State.HALF_OPEN


def test_b4_the_wall_clock_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    b, clock = opened()
    for hours in (-1, 1):
        monkeypatch.setattr(time, "time", lambda hours=hours: hours * 3_600.0)
        assert b.state("k") is State.OPEN
    clock.now_s += 10
    assert b.state("k") is State.HALF_OPEN


def test_b5_zero_is_not_unset() -> None:
    b, clock = opened()  # opened at 0.0
    clock.now_s = 9.99
    assert b.state("k") is State.OPEN
    assert opened(cooldown_s=0.0)[0].acquire("k") is not None


def test_b6_stream_failures_open_it(make_either: MakeRouter, simulator: Simulator) -> None:
    router = make_either({"global-api": "cut:2"})
    for _ in range(5):
        with pytest.raises(StreamInterrupted):
            list(router.stream("hi", "simple"))
    assert router.breaker.state(f"{KEY}!cut:2") is State.OPEN
    assert list(router.stream("hi", "simple"))
    assert "thinking" in simulator.requests[-1]


def test_b7_with_all_open_there_is_still_one_attempt(make_either: MakeRouter, simulator: Simulator) -> None:
    router = make_either(dict.fromkeys(("global-api", "deepseek", "openrouter"), "500"), breaker_failures=1)
    for _ in range(10):
        with pytest.raises(RequestFailed):
            router.complete("hi", "premium")
    before = len(simulator.requests)
    with pytest.raises(RequestFailed, match="1 attempts"):
        router.complete("hi", "premium")
    assert len(simulator.requests) == before + 1


class BreakerMachine(RuleBasedStateMachine):
    """Whatever the order of calls, ends and time: one probe at most, no call while open, nothing stale counts."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.clock = breaker(failures=2, cooldown_s=5.0)
        self.out: list[tuple[Permit, int]] = []  # with the number of turns before it
        self.turns = 0
        self.opened_at_s = 0.0

    @rule()
    def acquire(self) -> None:
        state = self.breaker.state("k")
        permit = self.breaker.acquire("k")
        probing = any(p.probe and turn == self.turns for p, turn in self.out)
        if state is State.OPEN or (state is State.HALF_OPEN and probing):
            assert permit is None
        else:
            assert permit is not None
            assert permit.probe == (state is State.HALF_OPEN)
            self.out.append((permit, self.turns))

    @rule()
    def force(self) -> None:
        permit = self.breaker.acquire("k", force=True)
        assert permit is not None
        self.out.append((permit, self.turns))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), failed=st.sampled_from([True, False, None]))
    def settle(self, data: st.DataObject, failed: bool | None) -> None:
        permit, turn = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        before = self.breaker.state("k")
        self.breaker.settle(permit, failed=failed)
        after = self.breaker.state("k")
        if failed is None or turn != self.turns:
            assert after is before
        if before is not State.CLOSED and after is State.CLOSED:
            assert failed is False
        if after is State.OPEN and before is not State.OPEN:
            assert failed is True
            self.opened_at_s = self.clock.now_s
        self.turns += before is not after

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @invariant()
    def open_no_longer_than_the_cooldown(self) -> None:
        if self.breaker.state("k") is State.OPEN:
            assert self.clock.now_s - self.opened_at_s < 5.0


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40)
