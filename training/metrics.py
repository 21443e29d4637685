"""Pure metrics of tiers given as ranks 0, 1, 2 and of success probabilities; names and definitions as in the field."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, f1_score

Ranks = NDArray[np.int64]


def tier_metrics(needed: Ranks, chosen: Ranks) -> dict[str, float]:
    """Of ranks of shape (n,): quadratic weighted kappa, macro-F1, accuracy, and shares of all prompts that are at most
    one tier off, under-routed, over-routed, and catastrophic (premium needed, simple chosen)."""
    kappa = cohen_kappa_score(needed, chosen, weights="quadratic", labels=[0, 1, 2])
    return {
        "qwk": float(np.nan_to_num(kappa)),
        "macro_f1": float(f1_score(needed, chosen, average="macro", labels=[0, 1, 2], zero_division=0)),
        "accuracy": float((needed == chosen).mean()),
        "adjacent": float((np.abs(needed - chosen) <= 1).mean()),
        "catastrophic": float(((needed == 2) & (chosen == 0)).mean()),
        "under": float((chosen < needed).mean()),
        "over": float((chosen > needed).mean()),
    }


def bootstrap(needed: Ranks, chosen: Ranks, *, seed: int, rounds: int = 1_000) -> dict[str, tuple[float, float]]:
    """95 % intervals of ``tier_metrics`` over resampled prompts."""
    rng = np.random.default_rng(seed)
    draws = [rng.integers(0, len(needed), len(needed)) for _ in range(rounds)]
    values = [tier_metrics(needed[draw], chosen[draw]) for draw in draws]
    return {
        name: (float(low), float(high))
        for name in values[0]
        for low, high in [np.percentile([value[name] for value in values], [2.5, 97.5])]
    }


def ece(probability: NDArray[np.float64], happened: NDArray[np.float64], bins: int = 15) -> float:
    """Expected calibration error over equal-mass bins (arXiv 1706.04599 with bins of equal count)."""
    parts = np.array_split(np.argsort(probability, kind="stable"), bins)
    gaps = [abs(probability[part].mean() - happened[part].mean()) * len(part) for part in parts if len(part)]
    return float(sum(gaps) / len(probability))


def brier(probability: NDArray[np.float64], happened: NDArray[np.float64]) -> float:
    """Mean squared error of a probability."""
    return float(np.mean((probability - happened) ** 2))
