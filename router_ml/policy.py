"""Pure: success probabilities, prices and a quality target -> a tier.

The tier with the highest ``success - price_weight * expected cost`` is chosen (a Lagrangian: ``price_weight`` is the
quality one dollar must buy). The weight is solved on calibration prompts, whose right tier is known, so that at today's
prices the chosen tiers keep the wanted share of premium's quality; a price change re-solves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_ml.types import TIERS, Tier

VERSION = "lagrangian-1"
_GRID = np.concatenate([[0.0], np.geomspace(1e-2, 1e6, 400)])  # quality per USD

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Prompts the head was not fitted on: predicted ``success`` and observed ``quality`` of each tier, both (n, 3), and
    ``input_tokens`` (n,)."""

    success: Array
    quality: Array
    input_tokens: Array


@dataclass(frozen=True, slots=True)
class Rates:
    """Expected price of a tier, USD per token."""

    input_usd: float
    output_usd: float

    def cost_usd(self, input_tokens: float, output_tokens: float) -> float:
        return input_tokens * self.input_usd + output_tokens * self.output_usd


@dataclass(frozen=True, slots=True)
class Solution:
    """``price_weight`` in quality per USD, with its evidence on the calibration prompts: the share of premium's quality
    kept, the mean cost relative to always-premium, and the share of prompts sent to each tier."""

    price_weight: float
    quality_kept: float
    cost_share: float
    tier_shares: tuple[float, float, float]


def choose(success: Mapping[Tier, float], cost_usd: Mapping[Tier, float], price_weight: float) -> Tier:
    """The tier whose success is best worth its price; the cheaper one of a tie."""
    return max(TIERS, key=lambda tier: (success[tier] - price_weight * cost_usd[tier], -cost_usd[tier]))


def solve(calibration: Calibration, rates: Mapping[Tier, Rates], quality: float, output_tokens: float) -> Solution:
    """The largest price weight that keeps ``quality`` (0..1] of premium's quality, from 0 up to the first failure.

    Stopping at the first failure, instead of taking the best of all weights, keeps chance passes far out on the grid
    from being believed (fixed-sequence testing, arXiv 2110.01052, with the point estimate in place of a bound).
    """
    cost = np.stack(
        [calibration.input_tokens * rates[tier].input_usd + output_tokens * rates[tier].output_usd for tier in TIERS], 1
    )
    wanted = quality * calibration.quality[:, -1].mean()
    solution = _outcome(calibration, cost, 0.0)
    for weight in _GRID[1:]:
        candidate = _outcome(calibration, cost, float(weight))
        if candidate.quality_kept * calibration.quality[:, -1].mean() < wanted:
            break
        solution = candidate
    return solution


def _outcome(calibration: Calibration, cost: Array, weight: float) -> Solution:
    value = calibration.success - weight * cost
    # Among equals the cheapest: ties are common at weight 0, where a tier adds nothing.
    best = np.where(value >= value.max(axis=1, keepdims=True) - 1e-12, cost, np.inf).argmin(axis=1)
    rows = np.arange(len(best))
    premium_cost, premium_quality = cost[:, -1].mean(), calibration.quality[:, -1].mean()
    shares = np.bincount(best, minlength=3) / len(best)
    return Solution(
        price_weight=weight,
        quality_kept=float(calibration.quality[rows, best].mean() / premium_quality) if premium_quality else 1.0,
        cost_share=float(cost[rows, best].mean() / premium_cost) if premium_cost else 1.0,
        tier_shares=(float(shares[0]), float(shares[1]), float(shares[2])),
    )
