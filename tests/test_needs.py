"""Offers that cannot serve a request are left out before the classifier is asked; unknown is not cannot."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from router_ml import Catalog, ConfigError, NoCapableOffer, Offer, Tier
from router_ml.needs import Needs, needs_of, unmet
from router_ml.simulator import Simulator

MakeRouter = Callable[..., Any]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}


@pytest.mark.parametrize(
    ("params", "capability"),
    [({"tools": [{}]}, "tools"), ({"functions": [{}]}, "tools"), ({"response_format": SCHEMA}, "json_schema")],
)
def test_needs_are_read_from_the_request(params: dict[str, Any], capability: str) -> None:
    assert needs_of([{"role": "user", "content": "hi"}], params).capabilities == {capability}
    assert needs_of([{"role": "user", "content": "hi"}], {"response_format": {"type": "json_object"}}) == Needs(0.5)
    assert needs_of(IMAGE, {"max_tokens": 7}) == Needs(0.0, 7, frozenset({"images"}))


def test_unknown_is_not_cannot() -> None:
    needs = Needs(1_000, 500, frozenset({"images"}))
    assert unmet(Offer("p", "m", Tier.SIMPLE), needs) == []
    assert unmet(Offer("p", "m", Tier.SIMPLE, capabilities=frozenset({"text"})), needs) == ["no images"]
    assert unmet(Offer("p", "m", Tier.SIMPLE, context_tokens=1_500), needs) == []
    assert "1,499 tokens of context" in unmet(Offer("p", "m", Tier.SIMPLE, context_tokens=1_499), needs)[0]


def test_offers_that_cannot_are_passed_over(make_either: MakeRouter) -> None:
    router = make_either()
    assert [o.provider for o in router.decide("hi", "premium", response_format=SCHEMA).offers] == [
        "global-api",
        "openrouter",
    ]
    assert {o.provider for o in router.decide(IMAGE).offers} == {"openrouter"}


class Unasked:
    """A classifier that must not be asked."""

    def __init__(self, real: Any) -> None:
        self.calibration, self.encoder = real.calibration, real.encoder

    def classify(self, prompt: object) -> None:
        raise AssertionError("asked")


def test_none_left_is_an_error_that_says_why_and_nobody_is_asked(
    make_either: MakeRouter, simulator: Simulator, classifier: Any
) -> None:
    router = make_either(classifier=Unasked(classifier), route=("global-api", "deepseek"))
    with pytest.raises(NoCapableOffer, match="global-api/deepseek-v4-flash: no images"):
        router.complete(IMAGE)
    with pytest.raises(NoCapableOffer, match="no json_schema"):
        router.complete("hi", model="deepseek/deepseek-v4-flash", response_format=SCHEMA)
    with pytest.raises(NoCapableOffer, match="1,000,000 tokens of context"):
        router.complete("x" * 5_000_000)
    assert simulator.requests == []
    assert router.ledger.recent() == []


def test_where_only_a_weaker_tier_can_it_serves_and_the_reason_says_so(make_router: MakeRouter) -> None:
    catalog = Catalog.load()
    blind = frozenset({"text"})
    offers = tuple(
        replace(o, capabilities=blind if o.tier > Tier.SIMPLE else frozenset({"images"})) for o in catalog.offers
    )
    router = make_router(catalog=replace(catalog, offers=offers))
    decision = router.decide(IMAGE, quality=1.0)
    assert decision.tier is Tier.SIMPLE
    with pytest.raises(NoCapableOffer):
        router.decide(IMAGE, "premium")


def test_an_unknown_capability_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "router.toml"
    path.write_text('[[offers]]\nprovider = "groq"\nmodel = "m"\ntier = "simple"\ncapabilities = ["image"]')
    with pytest.raises(ConfigError, match="unknown capability 'image'; did you mean 'images'"):
        Catalog.load(path)


def test_capabilities_of_a_provider_are_those_of_its_models() -> None:
    offers = {str(offer): offer for offer in Catalog.load().offers}
    assert offers["openai/gpt-5.5"].capabilities == {"tools", "json_schema", "images"}
    assert offers["openrouter/qwen/qwen3-max"].capabilities == frozenset()
