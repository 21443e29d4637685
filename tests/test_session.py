"""Conversations: the pure part, and how a router holds to it."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from router_ml import Catalog, Complexity, ComplexityClassifier, InputError, Offer, Tier
from router_ml.session import Held, Sessions, stay_or_move
from router_ml.types import Price

MakeRouter = Callable[..., Any]
SIMPLE = Offer("p", "m", Tier.SIMPLE)


def success(simple: float, complex_: float, premium: float) -> dict[Tier, float]:
    return {Tier.SIMPLE: simple, Tier.COMPLEX: complex_, Tier.PREMIUM: premium}


COST_USD = {Tier.SIMPLE: 0.001, Tier.COMPLEX: 0.01, Tier.PREMIUM: 0.1}


def test_a_session_is_forgotten_after_its_ttl() -> None:
    now = [0.0]
    sessions = Sessions(ttl_s=10, now=lambda: now[0])
    sessions.keep("a", Held(SIMPLE, 5))
    now[0] = 9.9
    assert sessions.get("a") == Held(SIMPLE, 5)
    now[0] = 10.0
    assert sessions.get("a") is None


def test_memory_is_bounded_by_number_and_by_age() -> None:
    now = [0.0]
    sessions = Sessions(ttl_s=10, now=lambda: now[0], max_sessions=3)
    for name in "abcd":
        sessions.keep(name, Held(SIMPLE, 0))
    assert (len(sessions), sessions.get("a")) == (3, None)
    now[0] = 20.0
    sessions.keep("e", Held(SIMPLE, 0))
    assert len(sessions) == 1


def test_a_ttl_of_zero_keeps_nothing() -> None:
    sessions = Sessions(ttl_s=0, now=lambda: 1.0)
    sessions.keep("a", Held(SIMPLE, 0))
    assert sessions.get("a") is None


def test_it_stays_where_the_turn_does_not_clearly_need_more() -> None:
    tier, why = stay_or_move(Tier.SIMPLE, success(0.8, 0.84, 0.84), COST_USD, 0.0, price_weight=0.0)
    assert (tier, "stays at simple" in why) == (Tier.SIMPLE, True)


def test_it_never_moves_down() -> None:
    assert stay_or_move(Tier.PREMIUM, success(0.9, 0.9, 0.9), COST_USD, 0.0, price_weight=9.0)[0] is Tier.PREMIUM


def test_it_moves_up_where_a_turn_clearly_needs_it_and_says_what_that_costs() -> None:
    tier, why = stay_or_move(Tier.SIMPLE, success(0.2, 0.9, 0.9), COST_USD, 0.0005, price_weight=1.0)
    assert tier is Tier.COMPLEX
    assert "leaving its warm cache costs $0.000500" in why


def test_a_warm_cache_that_saves_enough_holds_it() -> None:
    gains = success(0.2, 0.3, 0.3)
    assert stay_or_move(Tier.SIMPLE, gains, COST_USD, 0.0, price_weight=10.0)[0] is Tier.COMPLEX
    assert stay_or_move(Tier.SIMPLE, gains, COST_USD, 0.0009 * 20, price_weight=10.0)[0] is Tier.SIMPLE


class Said:
    """Says what it is told to, in place of the classifier."""

    def __init__(self, real: ComplexityClassifier) -> None:
        self.calibration, self.encoder = real.calibration, real.encoder
        self.success = success(0.95, 0.95, 0.95)

    def classify(self, prompt: object) -> Complexity:
        return Complexity(self.success, "said")


def test_a_conversation_keeps_its_tier_and_provider_and_moves_up_when_needed(
    make_either: MakeRouter, classifier: ComplexityClassifier
) -> None:
    said = Said(classifier)
    router = make_either({"global-api": "500%50"}, classifier=said)
    turns = [{"role": "user", "content": "hi"}]
    assert router.complete(turns, session="s").tier is Tier.SIMPLE
    said.success = success(0.05, 0.05, 0.95)
    up = router.complete(turns, session="s")
    assert up.decision.tier is Tier.PREMIUM
    assert "session moves up from simple" in up.decision.reason
    said.success = success(0.95, 0.95, 0.95)
    held = router.complete(turns, session="s")
    assert held.decision.tier is Tier.PREMIUM
    assert "session stays at premium" in held.decision.reason
    assert router.complete(turns, session="another").tier is Tier.SIMPLE
    assert router.complete(turns).tier is Tier.SIMPLE


def test_a_session_is_a_short_string(make_either: MakeRouter) -> None:
    for session in ("x" * 257, 5, ["s"]):
        with pytest.raises(InputError, match="session"):
            make_either().complete("hi", session=session)


def test_the_offer_that_answered_is_asked_first(make_either: MakeRouter, classifier: ComplexityClassifier) -> None:
    router = make_either({"global-api": "500"}, classifier=Said(classifier))
    assert router.complete("hi", session="s").provider == "deepseek"
    assert router.decide("hi", session="s").offers[0].provider == "deepseek"
    assert router.decide("hi").offers[0].provider == "global-api"


def test_a_stream_keeps_its_session_too(make_either: MakeRouter, classifier: ComplexityClassifier) -> None:
    said = Said(classifier)
    said.success = success(0.05, 0.05, 0.95)
    router = make_either(classifier=said)
    list(router.stream("hi", session="s"))
    said.success = success(0.95, 0.95, 0.95)
    assert router.decide("hi", session="s").tier is Tier.PREMIUM


def test_what_a_warm_cache_saves_is_in_the_reason(make_router: MakeRouter, classifier: ComplexityClassifier) -> None:
    catalog = Catalog.load()
    price = Price(Decimal(10), Decimal(20), cache_read_mtok=Decimal(1), source="test")
    offers = tuple(replace(o, price=price) if o.provider == "global-api" else o for o in catalog.offers)
    router = make_router(classifier=Said(classifier), catalog=replace(catalog, offers=offers))
    turn = [{"role": "user", "content": "word " * 4_000}]
    router.complete(turn, session="s")
    assert "would cost $0.03" in router.decide(turn, session="s").reason  # about 4,000 tokens at $9 a million
