"""router-ml explain: the probabilities, what moved them, the nearest labelled prompts, what would flip the choice."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from router_ml.types import TIERS, Complexity, Tier

_QUALITIES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0)
_FACTORS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def explained(text: str, *, config: str | None, model: str | None) -> dict[str, Any]:
    """What the command says, as JSON values. Needs no key and calls nobody.

    Raises:
        InputError, ConfigError, ArtefactError: as the parts it reads.
    """
    from router_ml.catalog import Catalog
    from router_ml.classifier import ComplexityClassifier
    from router_ml.decider import Decider
    from router_ml.explain import explain
    from router_ml.needs import needs_of
    from router_ml.text import to_messages

    catalog, classifier = Catalog.load(config), ComplexityClassifier.load(model)
    every_key = {provider.key_env: "none" for provider in catalog.providers.values() if provider.key_env}
    decider = Decider(catalog, classifier, every_key)
    found = explain(classifier, text)
    said, needs, quality = found.complexity, needs_of(to_messages(text), {}), catalog.settings.quality
    decision = decider.decide(text, needs, quality)
    by_quality = {wanted: decider.tier_at(said, needs, wanted) for wanted in _QUALITIES}
    return {
        "tier": decision.tier,
        "reason": decision.reason,
        "success": dict(said.success),
        "probabilities": said.probabilities,
        "familiarity": said.familiarity,
        "phrases": [{"phrase": part.phrase, "added_rank": part.added_rank} for part in found.influences],
        "nearest": [{"text": near.text, "tier": near.tier, "similarity": near.similarity} for near in found.neighbours],
        "tier_by_quality": {f"{wanted:g}": tier for wanted, tier in by_quality.items()},
        "price_flip": _price_flip(decider, said, needs, quality, decision.tier),
    }


def _price_flip(decider: Any, said: Complexity, needs: Any, quality: float, now: Tier) -> dict[str, Any] | None:
    """The first change of the chosen tier's price, dearer or cheaper, that changes the choice; None where none does."""
    for factor in _FACTORS:
        for change in (factor, 1 / factor):
            there = decider.tier_at(said, needs, quality, {now: change})
            if there is not None and there != now:
                return {"tier": now, "price_factor": change, "becomes": there}
    return None


def lines(said: Mapping[str, Any]) -> list[str]:
    """The same for reading."""
    shares = ", ".join(f"{tier} {said['success'][tier]:.2f}" for tier in TIERS)
    out = [f"{said['tier']}: {said['reason']}", f"success {shares}; familiarity {said['familiarity']:.2f}", ""]
    out += ["what each phrase adds to the rank (0 simple, 2 premium):"]
    out += [f"  {part['added_rank']:+.2f}  {_plain(part['phrase'], 60)}" for part in said["phrases"]]
    out += ["", "nearest labelled prompts:"]
    out += [f"  {near['similarity']:.2f}  {near['tier']:8} {_plain(near['text'], 90)}" for near in said["nearest"]]
    out += ["", "by quality target: " + ", ".join(f"{q} {tier}" for q, tier in said["tier_by_quality"].items())]
    flip = said["price_flip"]
    out += [
        f"if {flip['tier']} cost {flip['price_factor']:g} times its price: {flip['becomes']}"
        if flip
        else "no price of the chosen tier within 100 times either way changes the choice"
    ]
    return out


def _plain(text: str, width: int) -> str:
    """On one line: control characters cannot forge another."""
    flat = "".join(char if char.isprintable() else " " for char in text)
    return flat if len(flat) <= width else f"{flat[: width - 1]}…"


def run(args: argparse.Namespace, text: str) -> dict[str, Any]:
    """Explain and print unless ``args.json``."""
    said = explained(text, config=args.config, model=args.model)
    if not args.json:
        sys.stdout.write("\n".join(lines(said)) + "\n")
    return said
