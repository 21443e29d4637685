"""Pure metrics of routing, deciding and success probabilities; names, definitions and sources as in the field.

Shapes throughout: n prompts, k tiers from the cheapest to the strongest. ``quality`` (n, k) in 0..1 and ``cost_usd``
(n, k) are what each tier's answer was worth and cost; ``score`` (n,) is a router's wish to send a prompt to the strong
model; ranks (n,) are tiers as 0, 1, 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

Ranks = NDArray[np.int64]
Array = NDArray[np.float64]


# Two models: how much of the strong model's advantage a share of strong calls recovers (RouteLLM, arXiv 2406.18665).


def pgr_curve(score: Array, quality: Array) -> tuple[Array, Array]:
    """Share of prompts sent to the strong model (n + 1,), 0 to 1, and the performance gap recovered there.

    ``quality`` (n, 2): weak, strong. Prompts of equal score go together, at their mean: the order of the rows is no
    knowledge. NaN throughout where the two models are equally good, as there is no gap to recover.
    """
    gain = quality[:, 1] - quality[:, 0]
    _, group, counts = np.unique(-score, return_inverse=True, return_counts=True)
    mean_gain = np.bincount(group, weights=gain) / counts
    recovered = np.concatenate([[0.0], np.cumsum(np.repeat(mean_gain, counts))])
    total = recovered[-1]
    share = np.arange(len(score) + 1) / len(score)
    return share, recovered / total if total else np.full(len(share), np.nan)


def apgr(score: Array, quality: Array) -> float:
    """Area under ``pgr_curve``: .5 for random order, above it where the router knows something."""
    share, recovered = pgr_curve(score, quality)
    return float(np.trapezoid(recovered, share))


def cpt(score: Array, quality: Array, level: float) -> float:
    """The smallest share of strong calls with PGR >= ``level`` (CPT50 and CPT80 are of .5 and .8)."""
    share, recovered = pgr_curve(score, quality)
    reached = np.flatnonzero(recovered >= level - 1e-12)
    return float(share[reached[0]]) if len(reached) else 1.0


# Cost and quality over all tiers (RouterBench, arXiv 2403.12031).


def hull(points: Array) -> Array:
    """The non-decreasing upper convex hull of (cost, quality) points (m, 2), as rows from the cheapest to the best."""
    best: list[Array] = []
    for point in points[np.lexsort((-points[:, 1], points[:, 0]))]:
        if best and point[1] <= best[-1][1]:
            continue
        while len(best) > 1 and _slope(best[-2], point) >= _slope(best[-2], best[-1]):
            best.pop()
        best.append(point)
    return np.array(best)


def _slope(a: Array, b: Array) -> float:
    return float((b[1] - a[1]) / (b[0] - a[0])) if b[0] > a[0] else np.inf


def aiq(points: Array, low_usd: float, high_usd: float) -> float:
    """Average improvement in quality: area under the hull between two costs, by their difference.

    The hull is carried on flat beyond its best point, and is 0 below its cheapest one.
    """
    if high_usd <= low_usd:
        return float("nan")
    edge = hull(points)
    grid = np.unique(np.concatenate([[low_usd, high_usd], edge[:, 0]]))
    grid = grid[(grid >= low_usd) & (grid <= high_usd)]
    return float(np.trapezoid(np.interp(grid, edge[:, 0], edge[:, 1], left=0.0), grid) / (high_usd - low_usd))


def constants(quality: Array, cost_usd: Array) -> Array:
    """(cost, quality) of sending everything to one tier, (k, 2): the zero router is the hull of these."""
    return np.stack([cost_usd.mean(axis=0), quality.mean(axis=0)], axis=1)


def cost_save(curve: Array, premium_usd: float, premium_quality: float, keep: float) -> float:
    """The largest 1 - C / C_premium on a router's (cost, quality) ``curve`` with Q >= ``keep`` * Q_premium; 0 where no
    point of it keeps that much, as one can always send everything to premium."""
    good = curve[curve[:, 1] >= keep * premium_quality - 1e-12]
    return max(0.0, float(1 - good[:, 0].min() / premium_usd)) if len(good) and premium_usd else 0.0


def oracle_gap(routed: tuple[float, float], quality: Array, cost_usd: Array) -> float:
    """(Q - Q_best_single) / (Q_oracle - Q_best_single) at the routed cost: what a router recovers of what is there.

    ``routed`` is its (cost, quality). The best single choice at that cost lies on the hull of the constants; the oracle
    takes the cheapest best tier of each prompt, mixed with the cheapest tier to the same cost.
    """
    single, (cost, reached) = hull(constants(quality, cost_usd)), routed
    best_single = float(np.interp(cost, single[:, 0], single[:, 1]))
    best = quality.max(axis=1, keepdims=True)
    pick = np.where(quality >= best - 1e-12, cost_usd, np.inf).argmin(axis=1)
    rows = np.arange(len(quality))
    top = np.array([cost_usd[rows, pick].mean(), quality[rows, pick].mean()])
    ceiling = hull(np.vstack([single[:1], top]))
    best_oracle = float(np.interp(cost, ceiling[:, 0], ceiling[:, 1]))
    room = best_oracle - best_single
    return float((reached - best_single) / room) if room > 1e-12 else float("nan")


# Decisions.


def needed_tier(quality: Array, eps: float = 0.0) -> Ranks:
    """The cheapest tier within ``eps`` of the strongest one's quality; the cheapest where no tier scores at all."""
    enough = quality >= quality[:, -1:] - eps - 1e-12
    needed: Ranks = np.where(quality.max(axis=1) <= 0.0, 0, enough.argmax(axis=1))
    return needed


def tier_metrics(needed: Ranks, chosen: Ranks) -> dict[str, float]:
    """Of ranks of shape (n,): quadratic weighted kappa, macro-F1, accuracy, and shares of all prompts that are at most
    one tier off, under-routed, over-routed, and catastrophic (premium needed, simple chosen)."""
    return {
        "qwk": kappa(needed, chosen),
        "macro_f1": float(f1_score(needed, chosen, average="macro", labels=[0, 1, 2], zero_division=0)),
        "accuracy": float((needed == chosen).mean()),
        "adjacent": float((np.abs(needed - chosen) <= 1).mean()),
        "catastrophic": float(((needed == 2) & (chosen == 0)).mean()),
        "under": float((chosen < needed).mean()),
        "over": float((chosen > needed).mean()),
    }


def kappa(a: Ranks, b: Ranks) -> float:
    """Quadratic weighted kappa; 0 where both are constant, so that nothing is shown."""
    if len(set(a.tolist()) | set(b.tolist())) < 2:
        return 0.0
    return float(np.nan_to_num(cohen_kappa_score(a, b, weights="quadratic", labels=[0, 1, 2])))


def confusion(needed: Ranks, chosen: Ranks) -> list[list[int]]:
    """Counts, a row per needed tier and a column per chosen one."""
    table = np.zeros((3, 3), dtype=int)
    np.add.at(table, (needed, chosen), 1)
    return [[int(count) for count in row] for row in table]


# Probabilities.


def ece(probability: Array, happened: Array, bins: int = 15) -> float:
    """Expected calibration error over equal-mass bins (arXiv 1706.04599 with bins of equal count)."""
    said, seen, prompts = reliability(probability, happened, bins).T
    return float((np.abs(said - seen) * prompts).sum() / len(probability))


def reliability(probability: Array, happened: Array, bins: int = 15) -> Array:
    """Per equal-mass bin: mean probability, mean of what happened, prompts; (at most ``bins``, 3). Its weighted mean
    gap is ``ece``."""
    parts = np.array_split(np.argsort(probability, kind="stable"), bins)
    return np.array([(probability[part].mean(), happened[part].mean(), len(part)) for part in parts if len(part)])


def brier(probability: Array, happened: Array) -> float:
    """Mean squared error of a probability."""
    return float(np.mean((probability - happened) ** 2))


def auroc(probability: Array, happened: Array) -> float:
    """Area under the ROC curve of ``happened`` >= .5; NaN where only one kind was seen."""
    positive = happened >= 0.5
    return float(roc_auc_score(positive, probability)) if 0 < positive.sum() < len(positive) else float("nan")


# Intervals.


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float], n: int, *, seed: int, rounds: int = 1_000
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of row numbers, over resampled rows. Give two routers' difference as the
    statistic for a paired interval: both then see the same resamples."""
    return bootstrap_each(lambda rows: {"": statistic(rows)}, n, seed=seed, rounds=rounds)[""]


def bootstrap_each(
    statistics: Callable[[NDArray[np.intp]], Mapping[str, float]], n: int, *, seed: int, rounds: int = 1_000
) -> dict[str, tuple[float, float]]:
    """``bootstrap`` of several named statistics that are reckoned together, on the same resamples."""
    rng = np.random.default_rng(seed)
    drawn = [statistics(rng.integers(0, n, n)) for _ in range(rounds)]
    bounds = {name: np.nanpercentile([values[name] for values in drawn], [2.5, 97.5]) for name in drawn[0]}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
