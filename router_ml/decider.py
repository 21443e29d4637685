"""Which tier and which offers, and why: needs -> classifier -> policy. Calls nobody and writes nothing."""

from __future__ import annotations

import difflib
import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeAlias

from router_ml import policy, pricing
from router_ml.catalog import Catalog
from router_ml.classifier import ComplexityClassifier
from router_ml.errors import InputError, MissingKeyError, NoCapableOffer, UnknownModel
from router_ml.needs import Needs, unmet
from router_ml.session import Held, stay_or_move
from router_ml.text import Prompt
from router_ml.types import TIERS, Complexity, Decision, Offer, Tier, Usage

Pin: TypeAlias = "Tier | Offer | None"

AUTO = "auto"
PINNED = "pinned"  # the policy_version where the caller decided
_SAMPLE_TOKENS = 1_000
_log = logging.getLogger(__name__)


class Decider:
    """The deciding half of a router. Thread-safe."""

    def __init__(self, catalog: Catalog, classifier: ComplexityClassifier, environ: Mapping[str, str]) -> None:
        """Raises MissingKeyError where a tier has no offer whose provider has its key in ``environ``."""
        self._catalog, self._classifier, self._environ = catalog, classifier, environ
        self._offers = {tier: self._usable(tier) for tier in TIERS}
        self._solve = functools.lru_cache(maxsize=64)(self._solve_uncached)

    def decide(
        self, prompt: Prompt, needs: Needs, quality: float, *, pin: Pin = None, held: Held | None = None
    ) -> Decision:
        """Raises NoCapableOffer where no offer can serve ``needs``, InputError for what is no prompt."""
        if isinstance(pin, Offer):
            _refuse(needs, [pin])
            return Decision(pin.tier, (pin,), f"{pin} was asked for", policy_version=PINNED)
        capable = {tier: tuple(o for o in self._offers[tier] if not unmet(o, needs)) for tier in TIERS}
        if not any(capable.values()):
            _refuse(needs, [offer for tier in TIERS for offer in self._offers[tier]])
        if pin is not None:
            offers = _ordered(capable, pin)
            if not offers:
                _refuse(needs, [offer for tier in TIERS if tier >= pin for offer in self._offers[tier]])
            return Decision(pin, offers, f"{pin} was asked for", policy_version=PINNED)
        complexity, failure = self._classify(prompt)
        if complexity is None:
            tier = self._catalog.settings.fallback_tier
            reason, version = f"the classifier failed ({failure}), so the fallback tier {tier} was taken", "fallback"
        else:
            tier, reason = self._choose(complexity, needs, quality, held)
            version = policy.VERSION
        offers = _ordered(capable, tier)
        if not offers:
            tier = max(t for t in TIERS if capable[t])
            offers, reason = capable[tier], f"{reason}; no offer so strong can serve it, so {tier}"
        if held is not None and held.offer in offers and held.offer.tier == tier:
            offers = (held.offer, *(offer for offer in offers if offer != held.offer))
        return Decision(tier, offers, reason, complexity, quality, policy_version=version)

    def stepped_down(self, decision: Decision, needs: Needs) -> list[Decision]:
        """Cheaper ones: its tier's own offers alone, then weaker tiers; a tier or model that was asked for stays."""
        own = tuple(offer for offer in decision.offers if offer.tier == decision.tier)
        offers = {decision.tier: own} if own != decision.offers else {}
        if decision.policy_version != PINNED:
            weaker = (tier for tier in reversed(TIERS) if tier < decision.tier)
            offers |= {tier: tuple(o for o in self._offers[tier] if not unmet(o, needs)) for tier in weaker}
        reason = f"{decision.reason}; under the day's spend ceiling"
        return [replace(decision, tier=tier, offers=some, reason=reason) for tier, some in offers.items() if some]

    def pinned(self, model: str) -> Pin:
        """What ``model`` asks for: "auto" nothing, a tier that tier, "provider/model" or a model's id that model.

        Raises:
            UnknownModel: anything else.
            MissingKeyError: every provider of that model lacks its key.
        """
        if not isinstance(model, str) or model == AUTO:
            if model == AUTO:
                return None
            raise UnknownModel(f"model is a {type(model).__name__}: pass 'auto', a tier or a model of the catalog")
        if model in TIERS:
            return Tier(model)
        route = {name: number for number, name in enumerate(self._catalog.settings.route)}
        offers = sorted(self._catalog.offers, key=lambda offer: route.get(offer.provider, len(route)))
        found = [offer for offer in offers if str(offer) == model] or [
            offer for offer in offers if offer.model == model
        ]
        if not found:
            near = difflib.get_close_matches(
                model, [*TIERS, *(str(o) for o in offers), *(o.model for o in offers)], n=1
            )
            hint = f"; did you mean {near[0]!r}?" if near else ": pass 'auto', a tier or a model of the catalog"
            raise UnknownModel(f"unknown model {model[:80]!r}{hint}")
        usable = [offer for offer in found if self._has_key(offer)]
        if not usable:
            raise MissingKeyError(f"no API key: set the environment variable {self._keys_of(found)}")
        return usable[0]

    def solution(self, quality: float) -> policy.Solution | None:
        """The price weight in force now with its evidence; None where a tier's price is unknown."""
        return self._solve(quality, _this_hour())[0]

    def tier_at(
        self, said: Complexity, needs: Needs, quality: float, price_factor: Mapping[Tier, float] | None = None
    ) -> Tier | None:
        """The tier if ``quality`` were wanted and each tier cost its price times ``price_factor``; None where a price
        is unknown. For explanations: it solves the price weight anew at every call."""
        rates = self._solve(quality, _this_hour())[1]
        if len(rates) < len(TIERS):
            return None
        by = price_factor or {}
        scaled = {
            tier: policy.Rates(rate.input_usd * by.get(tier, 1.0), rate.output_usd * by.get(tier, 1.0))
            for tier, rate in rates.items()
        }
        expected = self._catalog.settings.expected_output_tokens
        solution = policy.solve(self._classifier.calibration, scaled, quality, expected)
        cost_usd = {tier: rate.cost_usd(needs.input_tokens, expected) for tier, rate in scaled.items()}
        return policy.choose(said.success, cost_usd, solution.price_weight)

    def _classify(self, prompt: Prompt) -> tuple[Complexity | None, str]:
        try:
            complexity = self._classifier.classify(prompt)
        except InputError:
            raise
        # A caller's own encoder can raise anything; it is logged, and the request is served by the fallback tier (M7).
        except Exception as exc:
            _log.exception("the classifier failed: the fallback tier is taken")
            return None, type(exc).__name__
        if not all(math.isfinite(p) for p in complexity.success.values()):
            _log.error("the classifier returned NaN or infinity: the fallback tier is taken")
            return None, "not a number"
        return complexity, ""

    def _choose(self, said: Complexity, needs: Needs, quality: float, held: Held | None) -> tuple[Tier, str]:
        solution, rates = self._solve(quality, _this_hour())
        success = said.success
        p = ", ".join(f"{tier} {success[tier]:.2f}" for tier in TIERS)
        if solution is None:
            if held is not None and said.tier <= held.offer.tier:
                return held.offer.tier, f"session stays at {held.offer.tier} (success {p}; prices are unknown)"
            return said.tier, f"median tier (success {p}); prices are unknown, so they are not weighed"
        expected = self._catalog.settings.expected_output_tokens
        output_tokens = expected if needs.max_output_tokens is None else min(expected, needs.max_output_tokens)
        cost_usd = {tier: rates[tier].cost_usd(needs.input_tokens, output_tokens) for tier in TIERS}
        if held is not None:
            warm_usd = self._warm_usd(held, needs.input_tokens)
            tier, why = stay_or_move(held.offer.tier, success, cost_usd, warm_usd, solution.price_weight)
            return tier, f"{why}; success {p}"
        tier = policy.choose(success, cost_usd, solution.price_weight)
        reason = f"success {p}; best worth its expected ${cost_usd[tier]:.6f} at quality {quality:g}"
        if said.familiarity < self._catalog.settings.step_up_below and tier < Tier.PREMIUM:
            return TIERS[tier.rank + 1], f"{reason}; one tier up, as only {said.familiarity:.1%} are less familiar"
        return tier, reason

    def _warm_usd(self, held: Held, input_tokens: float) -> float:
        """What the held offer's cache saves on this turn; 0 where its prices are unknown."""
        tokens = int(min(held.warm_tokens, input_tokens))
        provider, now = self._catalog.providers[held.offer.provider], _this_hour()
        cold = pricing.cost(held.offer, provider, Usage(tokens, 0), now).usd
        warm = pricing.cost(held.offer, provider, Usage(tokens, 0, cached_input_tokens=tokens), now).usd
        return float(cold - warm) if cold is not None and warm is not None else 0.0

    def _solve_uncached(
        self, quality: float, hour: datetime
    ) -> tuple[policy.Solution | None, dict[Tier, policy.Rates]]:
        rates = {tier: self._rates(_ordered(self._offers, tier)[0], hour) for tier in TIERS}
        known = {tier: rate for tier, rate in rates.items() if rate is not None}
        if len(known) < len(TIERS):
            return None, known
        output_tokens = self._catalog.settings.expected_output_tokens
        return policy.solve(self._classifier.calibration, known, quality, output_tokens), known

    def _rates(self, offer: Offer, at: datetime) -> policy.Rates | None:
        provider = self._catalog.providers[offer.provider]
        inputs = pricing.cost(offer, provider, Usage(_SAMPLE_TOKENS, 0), at).usd
        outputs = pricing.cost(offer, provider, Usage(0, _SAMPLE_TOKENS), at).usd
        if inputs is None or outputs is None:
            return None
        return policy.Rates(float(inputs) / _SAMPLE_TOKENS, float(outputs) / _SAMPLE_TOKENS)

    def _usable(self, tier: Tier) -> tuple[Offer, ...]:
        routed = self._catalog.routed(tier)
        usable = tuple(offer for offer in routed if self._has_key(offer))
        if not usable:
            raise MissingKeyError(f"no API key: set the environment variable {self._keys_of(routed)}")
        return usable

    def _has_key(self, offer: Offer) -> bool:
        env = self._catalog.providers[offer.provider].key_env
        return env is None or bool(self._environ.get(env))

    def _keys_of(self, offers: tuple[Offer, ...] | list[Offer]) -> str:
        names = (self._catalog.providers[offer.provider].key_env for offer in offers)
        return " or ".join(dict.fromkeys(name for name in names if name))


def _ordered(offers: Mapping[Tier, tuple[Offer, ...]], tier: Tier) -> tuple[Offer, ...]:
    """The tier's offers in route order, then stronger tiers': a failing tier is never answered by a weaker one."""
    return tuple(offer for stronger in TIERS if stronger >= tier for offer in offers[stronger])


def _refuse(needs: Needs, offers: list[Offer]) -> None:
    """Raises NoCapableOffer where none of ``offers`` meets ``needs``."""
    lacking = {str(offer): ", ".join(why) for offer in offers if (why := unmet(offer, needs))}
    if len(lacking) == len({str(offer) for offer in offers}):
        raise NoCapableOffer(
            "no offer can serve this request: " + "; ".join(f"{o}: {why}" for o, why in lacking.items())
        )


def _this_hour() -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
