"""Other people's routers as arms of the benchmark, each only where its package is installed.

Each is scored by its own package's code; what a user would have to give it (example utterances, outcomes) is this
project's. Packages are imported when an arm is made, never before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from router_ml.errors import InputError
from router_ml.types import Tier
from training.dataset import outcome_table, read_labelled, stems_of
from training.metrics import Array

if TYPE_CHECKING:
    from training.distill import Teacher

Scorer = Callable[[list[str]], Array]


@dataclass(frozen=True, slots=True)
class Materials:
    """What an arm may be made of: labelled ``prompts``, ``outcomes`` of which nothing in ``benchmark`` is learned from,
    and the folder ``cache`` of the teacher's embeddings."""

    benchmark: Path
    outcomes: Sequence[Path]
    prompts: Path
    cache: Path
    seed: int


@dataclass(frozen=True, slots=True)
class Rival:
    """An arm made by ``make`` where all ``packages`` can be found; ``install`` says how to get them."""

    packages: tuple[str, ...]
    install: str
    make: Callable[[Materials], Scorer]
    needs_outcomes: bool = False

    def lacks(self, materials: Materials) -> str | None:
        """Why it cannot be made, or None."""
        missing = [name for name in self.packages if not find_spec(name)]
        if missing:
            return f"not installed: {', '.join(missing)} ({self.install})"
        return "no outcomes to learn from (--outcomes FILE)" if self.needs_outcomes and not materials.outcomes else None


def make_arms(wanted: Collection[str] | None, materials: Materials) -> tuple[dict[str, Scorer], dict[str, str]]:
    """The arms ``wanted`` by name, or all that can be made where None; and why each of the others cannot.

    Raises:
        InputError: an arm that was asked for by name cannot be made.
    """
    made: dict[str, Scorer] = {}
    absent: dict[str, str] = {}
    for name, rival in RIVALS.items():
        if wanted is not None and name not in wanted:
            continue
        reason = rival.lacks(materials)
        if not reason:
            try:
                made[name] = rival.make(materials)
                continue
            except ImportError as exc:
                reason = f"cannot be imported: {exc} ({rival.install})"
        if wanted is not None:
            raise InputError(f"{name}: {reason}")
        absent[name] = reason
    return made, absent


def _litellm_heuristic(_: Materials) -> Scorer:
    """The weighted score that LiteLLM's complexity router cuts into tiers."""
    _offline_litellm()
    from litellm.router_strategy.complexity_router.complexity_router import ComplexityRouter

    router = ComplexityRouter("benchmark", ctx=None)  # the context is for calling models, which nothing here does
    return lambda prompts: np.array([router.classify(prompt)[1] for prompt in prompts], dtype=float)


def _litellm_heuristic_v2(_: Materials) -> Scorer:
    """1 - P(the lowest tier succeeds) of LiteLLM's ``heuristic_v2``, with the statistics that it ships."""
    _offline_litellm()
    from litellm.router_strategy.adaptive_router.classifier import classify_prompt
    from litellm.router_strategy.complexity_router.tier_predictor import TierSuccessPredictor, resolve_tier_artifact

    predictor = TierSuccessPredictor(resolve_tier_artifact("ultrafeedback"))

    def score(prompts: list[str]) -> Array:
        predicted = [predictor.predict(prompt, classify_prompt(prompt)).probabilities[1] for prompt in prompts]
        return 1 - np.array(predicted, dtype=float)

    return score


def _offline_litellm() -> None:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else importing it asks the network for prices


def _semantic_router(materials: Materials) -> Scorer:
    """Similarity to the route ``premium`` minus that to ``simple``, as an ``IndexedRouter`` of default settings has
    them: its utterances are all training prompts of these tiers, its encoder is MiniLM."""
    from semantic_router import IndexedRouter, Route
    from semantic_router.encoders import DenseEncoder

    vectors: dict[str, list[float]] = {}

    class Embedded(DenseEncoder):
        """Looks up what the teacher embedded in batches: the router asks for one prompt at a time."""

        def __call__(self, docs: list[str]) -> list[list[float]]:
            return [vectors[doc] for doc in docs]

    def embed(texts: list[str], label: str) -> None:
        vectors.update(zip(texts, _teacher(materials.cache).encode(texts, label).tolist(), strict=True))

    train, _ = read_labelled(materials.prompts)
    utterances = {tier: train.rows(train.labels == tier.value).texts for tier in (Tier.SIMPLE, Tier.PREMIUM)}
    embed([text for texts in utterances.values() for text in texts], "teacher, utterances")
    routes = [Route(name=tier.value, utterances=texts) for tier, texts in utterances.items()]
    router = IndexedRouter(Embedded(name="teacher"), routes)

    def score(prompts: list[str]) -> Array:
        embed(prompts, "teacher, benchmark")
        return np.array([_preference(router(prompt, limit=None)) for prompt in prompts])

    return score


def _preference(choices: Any) -> float:
    similarity = {choice.name: float(choice.confidence) for choice in choices}
    return similarity[Tier.PREMIUM] - similarity[Tier.SIMPLE]


def _matrix_factorisation(materials: Materials) -> Scorer:
    """The logit that premium models beat simple ones, of RouteLLM's form learned from the outcomes by MiniLM's
    embeddings."""
    from training.factorisation import fit

    table, _ = outcome_table(materials.outcomes, exclude=stems_of([materials.benchmark]))
    met = table.rows((~np.isnan(table.success)).sum(axis=1) > 1)
    if not len(met):
        raise InputError("the outcomes hold no prompt that models of two tiers answered")
    teacher = _teacher(materials.cache)
    model = fit(teacher.encode(met.texts, "teacher, outcomes"), met.success, met.weight, seed=materials.seed)
    premium, simple = Tier.PREMIUM.rank, Tier.SIMPLE.rank
    return lambda prompts: model.advantage(premium, simple, teacher.encode(prompts, "teacher, benchmark"))


@cache
def _teacher(folder: Path) -> Teacher:
    from training.distill import Teacher, packaged

    return Teacher(packaged(), folder)


_TEACHER = ("torch", "sentence_transformers")
RIVALS = {
    "litellm-heuristic": Rival(("litellm",), "pip install 'litellm>=1.110'", _litellm_heuristic),
    "litellm-heuristic-v2": Rival(("litellm",), "pip install 'litellm>=1.110'", _litellm_heuristic_v2),
    "semantic-router": Rival(
        ("semantic_router", *_TEACHER), "pip install --no-deps semantic-router; see the README", _semantic_router
    ),
    "routellm-mf-retrained-by-us": Rival(
        _TEACHER, "pip install 'router-ml[train]'", _matrix_factorisation, needs_outcomes=True
    ),
}
