"""What a classifier says of prompts whose answers were judged, beside what was judged: a Report is made of it, and it
shows what a Report's means hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from router_ml import policy, pricing
from router_ml.catalog import Catalog
from router_ml.classifier import ComplexityClassifier
from router_ml.encoder import StaticEncoder
from router_ml.errors import ConfigError, InputError
from router_ml.types import TIERS, Tier, Usage
from training.dataset import Table, ledger_table, read_labelled
from training.evaluate import (
    Report,
    answer_costs,
    chosen,
    evaluate,
    lexical_baselines,
    probabilities,
    ranks,
    routed_curve,
)
from training.metrics import Array, ece, hull, needed_tier, reliability

MIN_PROMPTS = 30
MIN_IN_BIN = 20
_SHOWN_CHARS = 160
_SAMPLE_TOKENS = 1_000


@dataclass(frozen=True, slots=True)
class Predictions:
    """Of the n prompts of ``table``: predicted ``success`` (n, 3), and ``cost_usd`` (n, 3) of each tier's answer at
    today's prices. The table's own success is what was judged, NaN where a tier was not asked."""

    table: Table
    success: Array
    cost_usd: Array

    def __len__(self) -> int:
        return len(self.table)

    @property
    def whole(self) -> Predictions:
        """Those of the prompts judged at every tier: only of these it is known which tier they needed."""
        return self.rows(~np.asarray(np.isnan(self.table.success).any(axis=1)))

    def rows(self, mask: NDArray[np.bool_]) -> Predictions:
        """Those where ``mask`` (n,) holds."""
        return Predictions(self.table.rows(mask), self.success[mask], self.cost_usd[mask])

    def reliability(self, tier: Tier) -> tuple[Array, float]:
        """``metrics.reliability`` and ``metrics.ece`` of one tier, over the prompts that were judged at it; in 15 bins,
        or as few as leave each ``MIN_IN_BIN`` prompts, as chance alone makes an error of small bins.

        Raises:
            InputError: no prompt was.
        """
        seen = ~np.isnan(self.table.success[:, tier.rank])
        if not seen.any():
            raise InputError(f"no prompt was judged at tier {tier}")
        said, happened = self.success[seen, tier.rank], self.table.success[seen, tier.rank]
        bins = min(15, max(1, len(said) // MIN_IN_BIN))
        return reliability(said, happened, bins), ece(said, happened, bins)

    def worst(self, count: int) -> pd.DataFrame:
        """The prompts whose needed tier was thought least likely, worst first, a row each."""
        p = probabilities(self.success)
        needed, picked = ranks(self.table.labels), chosen(self.success)
        rows = np.argsort(p[np.arange(len(p)), needed], kind="stable")[:count]
        shown: dict[str, Any] = {
            "prompt": [_shortened(self.table.texts[row]) for row in rows],
            "task": self.table.task[rows],
            "language": self.table.language[rows],
            "needed": [TIERS[rank].value for rank in needed[rows]],
            "chosen": [TIERS[rank].value for rank in picked[rows]],
        }
        shown |= {f"P({tier})": p[rows, tier.rank] for tier in TIERS}
        return pd.DataFrame(shown)


def of_labelled(classifier: ComplexityClassifier, path: Path) -> Predictions:
    """Of the held-out split of labelled prompts. Raises InputError as ``read_labelled``."""
    return _of(classifier, read_labelled(path)[1])


def of_ledger(classifier: ComplexityClassifier, url: str) -> Predictions:
    """Of the prompts of a ledger that have an outcome, a row a prompt with the mean score of each tier that answered.

    ``labels`` hold the needed tier where every tier was judged, "" elsewhere.

    Raises:
        InputError: no judged answer whose text was kept.
        LedgerError: the ledger cannot be read.
    """
    answers, _ = ledger_table(url)
    if not len(answers):
        raise InputError("the ledger holds no judged answer whose prompt was kept: give feedback, keep prompts 'full'")
    means = pd.DataFrame(answers.success).groupby(answers.texts, sort=False).mean()
    success = means.to_numpy(float)
    labels = [
        "" if np.isnan(row).any() else TIERS[needed_tier(row[None])[0]].value for row in success
    ]  # fmt: skip
    n = len(means)
    unknown = np.full(n, "unknown")
    table = Table(
        [str(text) for text in means.index], success, np.ones(n), np.full(n, "ledger"), np.array(labels, dtype=str),
        unknown, unknown,
    )  # fmt: skip
    return _of(classifier, table)


def report_of_ledger(predictions: Predictions, labelled: Path, *, seed: int = 0) -> Report:
    """The Report of a ledger's prompts that were judged at every tier; its baselines learn from labelled prompts.

    Prompts judged at one tier only are left out: which tier they needed is not known, and assuming what the classifier
    says would have it mark its own work.

    Raises:
        InputError: too few such prompts.
    """
    whole = predictions.whole
    if len(whole) < MIN_PROMPTS:
        raise InputError(
            f"{len(whole)} of {len(predictions)} judged prompts were judged at every tier, at least {MIN_PROMPTS} are "
            f"needed: send a sample to each with router.complete(prompt, tier=...) and give feedback"
        )
    others = lexical_baselines(read_labelled(labelled)[0], whole.table, seed=seed)
    return evaluate(whole.success, whole.table, whole.cost_usd, others, seed=seed)


def curve_band(predictions: Predictions, shares: Array, *, seed: int, rounds: int = 200) -> Array:
    """95 % bootstrap band of the hull of the router's cost-quality curve: quality (2, m), lower and upper, at mean
    costs that are ``shares`` (m,) of always-premium's."""
    rng = np.random.default_rng(seed)
    n = len(predictions)
    drawn = []
    for _ in range(rounds):
        rows = rng.integers(0, n, n)
        cost = predictions.cost_usd[rows]
        edge = hull(routed_curve(predictions.success[rows], predictions.table.success[rows], cost))
        drawn.append(np.interp(shares, edge[:, 0] / cost[:, -1].mean(), edge[:, 1]))
    band: Array = np.percentile(drawn, [2.5, 97.5], axis=0)
    return band


def price_what_if(
    classifier: ComplexityClassifier, catalog: Catalog, factors: Sequence[float], qualities: Sequence[float]
) -> pd.DataFrame:
    """What the policy would do if premium cost ``factor`` times its price: a row per quality target and factor, with
    the cost saved against always-premium, the quality kept and each tier's share, on the calibration prompts.

    Raises:
        ConfigError: a tier's price is unknown.
    """
    rates = _rates(catalog)
    rows = []
    for quality in qualities:
        for factor in factors:
            premium = rates[Tier.PREMIUM]
            dearer = policy.Rates(premium.input_usd * factor, premium.output_usd * factor)
            solution = policy.solve(
                classifier.calibration,
                rates | {Tier.PREMIUM: dearer},
                quality,
                catalog.settings.expected_output_tokens,
            )
            shares = {tier.value: share for tier, share in zip(TIERS, solution.tier_shares, strict=True)}
            rows.append(
                {"quality": quality, "factor": factor, "saved": 1 - solution.cost_share, "kept": solution.quality_kept}
                | shares
            )
    return pd.DataFrame(rows)


def _of(classifier: ComplexityClassifier, table: Table) -> Predictions:
    encoder = classifier.encoder
    if not isinstance(encoder, StaticEncoder):
        raise InputError(f"costs are counted with a static encoder's tokenizer, not {type(encoder).__name__}'s")
    costs = answer_costs(Catalog.load(), encoder.tokenizer, table)
    return Predictions(table, classifier.predict_success(table.texts), costs)


def _rates(catalog: Catalog) -> dict[Tier, policy.Rates]:
    now = datetime.now(UTC)
    rates = {}
    for tier in TIERS:
        offer = catalog.routed(tier)[0]
        seller = catalog.providers[offer.provider]
        inputs, outputs = (
            pricing.cost(offer, seller, usage, now).usd
            for usage in (Usage(_SAMPLE_TOKENS, 0), Usage(0, _SAMPLE_TOKENS))
        )
        if inputs is None or outputs is None:
            raise ConfigError(f"the price of {offer} is unknown: give the offer a price")
        rates[tier] = policy.Rates(float(inputs) / _SAMPLE_TOKENS, float(outputs) / _SAMPLE_TOKENS)
    return rates


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN_CHARS else f"{flat[:_SHOWN_CHARS]}..."
