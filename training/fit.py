"""scikit-learn head and calibration: vectors and success targets -> the layer that numpy evaluates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from router_ml.classifier import Layer
from router_ml.encoder import Vectors
from router_ml.errors import InputError
from router_ml.types import TIERS
from training.dataset import Table

_CERTAIN = 6.0  # logit of a tier that never failed: 99.75 %


def fit_head(x: Vectors, table: Table, *, c: float, outcome_weight: float, seed: int) -> Layer:
    """A logistic regression per tier on the success targets; ``c`` is scikit-learn's inverse regularisation.

    Each source has an intercept of its own, so that an exam's difficulty does not shift everyday prompts; the one kept
    for serving is that of the labelled prompts. All outcomes together weigh ``outcome_weight`` times the labelled rows.

    Raises:
        InputError: no labelled rows.
    """
    labelled = table.source == "labelled"
    if not labelled.any():
        raise InputError("the training table holds no labelled prompts: nothing anchors the tiers")
    weight = table.weight.copy()
    if not labelled.all():
        weight[~labelled] *= outcome_weight * labelled.sum() / weight[~labelled].sum()
    others = sorted(set(table.source[~labelled]))
    design = np.hstack([x, *((table.source == name)[:, None].astype(np.float32) for name in others)])
    rows = [_fit_tier(design, table.success[:, tier.rank], weight, c=c, seed=seed) for tier in TIERS]
    weights = np.stack([row[0][: x.shape[1]] for row in rows]).astype(np.float32)
    return weights, np.array([row[1] for row in rows], dtype=np.float32)


def _fit_tier(
    design: Vectors, target: NDArray[np.float64], weight: NDArray[np.float64], *, c: float, seed: int
) -> tuple[NDArray[np.float64], float]:
    """Coefficients and intercept. A target of .7 is a success of weight .7 and a failure of weight .3."""
    seen = ~np.isnan(target)
    x = np.concatenate([design[seen], design[seen]])
    y = np.concatenate([np.ones(seen.sum()), np.zeros(seen.sum())])
    w = np.concatenate([weight[seen] * target[seen], weight[seen] * (1 - target[seen])])
    kept = w > 0
    if len(set(y[kept])) < 2:  # always or never acceptable: no line to fit
        return np.zeros(design.shape[1]), _CERTAIN if y[kept].all() else -_CERTAIN
    model = LogisticRegression(C=c, max_iter=2_000, random_state=seed).fit(x[kept], y[kept], sample_weight=w[kept])
    return model.coef_[0], float(model.intercept_[0])


def calibrate(layer: Layer, x: Vectors, success: NDArray[np.float64]) -> Layer:
    """Platt scaling per tier on held-out rows (Platt 1999), folded into the layer: a * logit + b is linear too."""
    weight, bias = (part.astype(np.float64).copy() for part in layer)
    for rank in range(len(TIERS)):
        target = success[:, rank]
        if len(set(target)) < 2:
            continue
        logit = (x @ weight[rank] + bias[rank])[:, None]
        platt = LogisticRegression(C=1e6).fit(logit, target)
        slope = max(float(platt.coef_[0, 0]), 0.0)  # a reversed head would be noise, not knowledge
        weight[rank], bias[rank] = slope * weight[rank], slope * bias[rank] + float(platt.intercept_[0])
    return weight.astype(np.float32), bias.astype(np.float32)
