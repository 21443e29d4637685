"""A classifier and the baselines it has to beat -> one Report: figures with intervals, and a verdict.

Costs are those of the packaged catalog's first offers for each prompt's own input tokens and an expected answer;
quality is each tier's success target. Routers are compared along their whole cost-quality curve, not at one setting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from router_ml import pricing
from router_ml.catalog import Catalog
from router_ml.classifier import median_rank
from router_ml.encoder import Vectors
from router_ml.tokenizer import WordPieceTokenizer
from router_ml.types import TIERS, Tier, Usage
from training.dataset import Names, Table
from training.metrics import (
    Array,
    Ranks,
    aiq,
    auroc,
    bootstrap,
    bootstrap_each,
    brier,
    confusion,
    constants,
    cost_save,
    ece,
    kappa,
    oracle_gap,
    tier_metrics,
)

Embed = Callable[[list[str], str], Vectors]
_WEIGHTS = np.concatenate([[0.0], np.geomspace(1e-1, 1e6, 200)])  # quality per USD
_MIN_GROUP = 15  # prompts below which a task's or a language's figures say nothing
_KEPT = (1.0, 0.98, 0.95)


@dataclass(frozen=True, slots=True)
class Report:
    """Figures of one classifier on one table of held-out prompts; plain values, so that JSON holds all of it.

    ``figures`` and ``intervals`` are of ``tier_metrics``; ``by_source``, ``by_task`` and ``by_language`` the same of
    groups; ``seeds`` the kappa of the head fitted again from other seeds, the first being this one's;
    ``routing`` the cost-quality figures; ``curves`` the (cost in USD a prompt, quality) points of the router and of the
    baselines; ``beats`` the paired interval of the kappa's difference from each baseline.
    """

    prompts: int
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confusion: list[list[int]]
    calibration: dict[str, dict[str, float]]
    seeds: list[float]
    by_source: dict[str, dict[str, float]]
    by_task: dict[str, dict[str, float]]
    by_language: dict[str, dict[str, float]]
    baselines: dict[str, dict[str, float]]
    beats: dict[str, tuple[float, float]]
    routing: dict[str, Any]
    curves: dict[str, list[list[float]]]
    verdict: str

    @classmethod
    def read(cls, path: Path) -> Report:
        """What ``write`` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def ranks(labels: Any) -> Ranks:
    """Tier names (n,) as 0, 1, 2."""
    return np.array([Tier(str(label)).rank for label in labels], dtype=np.int64)


def probabilities(success: Array) -> Array:
    """P(tier is needed) (n, 3) from P(acceptable | tier), as ``Complexity.probabilities`` has it."""
    simple, complex_, premium = success.T
    return np.stack([simple + 1 - premium, complex_ - simple, premium - complex_], axis=1)


def chosen(success: Array) -> Ranks:
    """The median tier of success probabilities (n, 3), as ``Complexity.tier`` has it."""
    return median_rank(probabilities(success))


def answer_costs(catalog: Catalog, tokenizer: WordPieceTokenizer, table: Table) -> Array:
    """USD of an answer by each tier's first offer (n, 3): the prompt's own tokens and the expected answer, at today's
    prices."""
    now = datetime.now(UTC)
    tokens = [len(tokenizer.encode(text)) for text in table.texts]
    columns = []
    for tier in TIERS:
        offer = catalog.routed(tier)[0]
        seller = catalog.providers[offer.provider]
        usages = (Usage(count, catalog.settings.expected_output_tokens) for count in tokens)
        columns.append([float(pricing.cost(offer, seller, usage, now).usd or "nan") for usage in usages])
    return np.array(columns).T


def evaluate(
    success: Array,
    test: Table,
    cost_usd: Array,
    others: Mapping[str, Array],
    *,
    seed: int,
    reseeded: Sequence[Array] = (),
) -> Report:
    """``success`` (n, 3) predicted for the labelled table ``test``; ``cost_usd`` (n, 3) of each tier's answer;
    ``others``: each baseline's P(tier is needed) (n, 3), as ``baselines`` gives; ``reseeded``: ``success`` of heads
    that were fitted from other seeds."""
    needed, predicted = ranks(test.labels), chosen(success)
    theirs = {name: median_rank(p) for name, p in others.items()}

    def gain(name: str) -> Callable[[NDArray[np.intp]], float]:
        return lambda rows: kappa(needed[rows], predicted[rows]) - kappa(needed[rows], theirs[name][rows])

    figures = tier_metrics(needed, predicted)
    n = len(test)
    routing, curves = _routing(success, test, cost_usd, others, seed)
    return Report(
        prompts=n,
        figures=figures,
        intervals=bootstrap_each(lambda rows: tier_metrics(needed[rows], predicted[rows]), n, seed=seed),
        confusion=confusion(needed, predicted),
        calibration={tier.value: _calibration(success[:, tier.rank], test.success[:, tier.rank]) for tier in TIERS},
        seeds=[figures["qwk"], *(kappa(needed, chosen(other)) for other in reseeded)],
        by_source=_by(test.source, needed, predicted),
        by_task=_by(test.task, needed, predicted),
        by_language=_by(test.language, needed, predicted),
        baselines={name: tier_metrics(needed, theirs[name]) for name in others},
        beats={name: bootstrap(gain(name), n, seed=seed, rounds=300) for name in others},
        routing=routing,
        curves=curves,
        verdict=_verdict(routing),
    )


def baselines(train: Table, test: Table, embed: Embed, *, seed: int) -> dict[str, Array]:
    """P(tier is needed) (n, 3) by the ``lexical_baselines``, and by kNN and logistic regression on the teacher's
    embeddings."""
    y = ranks(train.labels)
    x_train, x_test = embed(train.texts, "teacher, train"), embed(test.texts, "teacher, test")
    neighbours = KNeighborsClassifier(min(15, len(train)), weights="distance", metric="cosine")
    return lexical_baselines(train, test, seed=seed) | {
        "kNN on MiniLM": neighbours.fit(x_train, y).predict_proba(x_test),
        "logistic on MiniLM": _logistic(seed, 3.0).fit(x_train, y).predict_proba(x_test),
    }


def lexical_baselines(train: Table, test: Table, *, seed: int) -> dict[str, Array]:
    """P(tier is needed) (n, 3) by the majority, the length, and TF-IDF + logistic regression; seconds, no teacher."""
    y = ranks(train.labels)
    length_train, length_test = (np.log1p([[len(text)] for text in part.texts]) for part in (train, test))
    words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), _logistic(seed, 10.0))
    return {
        "majority": DummyClassifier().fit(length_train, y).predict_proba(length_test),
        "length": _logistic(seed, 10.0).fit(length_train, y).predict_proba(length_test),
        "tf-idf + logistic": words.fit(train.texts, y).predict_proba(test.texts),
    }


def _logistic(seed: int, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=2_000, random_state=seed)


def _calibration(probability: Array, happened: Array) -> dict[str, float]:
    return {
        "ece": ece(probability, happened),
        "brier": brier(probability, happened),
        "auroc": auroc(probability, happened),
    }


def _by(group: Names, needed: Ranks, predicted: Ranks) -> dict[str, dict[str, float]]:
    names, counts = np.unique(group, return_counts=True)
    return {
        str(name): {"prompts": float(count), **tier_metrics(needed[group == name], predicted[group == name])}
        for name, count in zip(names, counts, strict=True)
        if count >= _MIN_GROUP
    }


def _routing(
    success: Array, test: Table, cost_usd: Array, others: Mapping[str, Array], seed: int
) -> tuple[dict[str, Any], dict[str, list[list[float]]]]:
    quality = test.success
    flat = constants(quality, cost_usd)
    low, high = float(flat[0, 0]), float(flat[-1, 0])
    curves = {"this model": routed_curve(success, quality, cost_usd)}
    curves |= {name: routed_curve(np.cumsum(p, axis=1), quality, cost_usd) for name, p in others.items()}
    zero = aiq(flat, low, high)
    ours = curves["this model"]
    at_95 = ours[_cheapest(ours, 0.95 * flat[-1, 1])]

    def gain(rows: NDArray[np.intp]) -> float:
        q, c = quality[rows], cost_usd[rows]
        ends = constants(q, c)
        span = float(ends[0, 0]), float(ends[-1, 0])
        return aiq(routed_curve(success[rows], q, c), *span) - aiq(ends, *span)

    figures = {
        "always": {tier.value: flat[tier.rank].tolist() for tier in TIERS},
        "aiq": {name: aiq(curve, low, high) for name, curve in curves.items()} | {"zero router": zero},
        "delta_aiq": aiq(ours, low, high) - zero,
        "delta_aiq_interval": bootstrap(gain, len(test), seed=seed, rounds=200),
        "cost_save": {f"{keep:.2f}": cost_save(ours, high, float(flat[-1, 1]), keep) for keep in _KEPT},
        "oracle_gap_at_95": oracle_gap((float(at_95[0]), float(at_95[1])), quality, cost_usd),
    }
    return figures, {name: curve.tolist() for name, curve in curves.items()}


def routed_curve(success: Array, quality: Array, cost_usd: Array) -> Array:
    """(mean cost, mean quality) of the policy over a sweep of price weights, (m, 2)."""
    rows = np.arange(len(quality))
    points = []
    for weight in _WEIGHTS:
        value = success - weight * cost_usd
        pick = np.where(value >= value.max(axis=1, keepdims=True) - 1e-12, cost_usd, np.inf).argmin(axis=1)
        points.append((cost_usd[rows, pick].mean(), quality[rows, pick].mean()))
    return np.array(points)


def _cheapest(curve: Array, wanted: float) -> int:
    good = np.flatnonzero(curve[:, 1] >= wanted - 1e-12)
    return int(good[curve[good, 0].argmin()]) if len(good) else int(curve[:, 1].argmax())


def _verdict(routing: Mapping[str, Any]) -> str:
    low, high = routing["delta_aiq_interval"]
    interval = f"95 % interval {low:+.3f} to {high:+.3f}"
    figure = f"{routing['delta_aiq']:+.3f} AIQ over the best mix of constant choices ({interval})"
    return (
        f"Routes better than any constant or cost-matched random choice: {figure}."
        if low > 0
        else (f"Not shown to route better than a constant or cost-matched random choice: {figure}.")
    )
