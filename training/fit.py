"""scikit-learn head and calibration: features and success targets -> the layers that numpy evaluates."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPRegressor
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from router_ml.classifier import Layer, forward
from router_ml.encoder import Vectors
from router_ml.familiarity import distance, squares
from router_ml.types import TIERS
from training.metrics import Array

HIDDEN, PENALTY, MEMBERS = 64, 1.0, 16  # as chosen in training/LOG.md
CENTRES = 32
FEW = 200  # rows below which a tenth of them is too few to stop early on
_NOTHING = 1e-12
_CERTAIN = 6.0  # logit of a tier that never failed: 99.75 %


def fit_head(
    x: Vectors, success: Array, weight: Array, *, hidden: int, alpha: float, members: int, seed: int
) -> list[Layer]:
    """An ensemble of small networks, each with one hidden layer, averaged: which is one network as wide as all of them.

    Args:
        x: features (n, f). ``success`` (n, 3): targets, NaN where a tier was not observed. ``weight`` (n,).
        hidden: units of a member. ``alpha``: scikit-learn's L2 penalty. ``members``: networks of different seeds.
    """
    target = _imputed(x, success, weight)
    nets = []
    for number in tqdm(range(members), desc="fit the head", unit="network"):
        net = MLPRegressor(
            hidden_layer_sizes=(hidden,),
            alpha=alpha,
            learning_rate_init=2e-3,
            early_stopping=len(x) >= FEW,
            max_iter=60 if len(x) >= FEW else 400,
            random_state=seed + number,
        )
        # The number of rounds is a choice here, not a failure to converge; matrices this small are slower on two cores.
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            nets.append(net.fit(x, target, sample_weight=weight / weight.mean()))
    first = np.hstack([net.coefs_[0] for net in nets]).T, np.concatenate([net.intercepts_[0] for net in nets])
    last = np.vstack([net.coefs_[1] for net in nets]).T / members, np.mean([net.intercepts_[1] for net in nets], axis=0)
    return [(_single(weights), biases.astype(np.float32)) for weights, biases in (first, last)]


def _single(weights: Array) -> Vectors:
    """In single precision, with 0 for what is next to nothing: the penalty leaves weights too small for normal numbers,
    and processors take ten times as long over those."""
    return np.where(np.abs(weights) < _NOTHING, 0.0, weights).astype(np.float32)


def calibrate(layers: Sequence[Layer], x: Vectors, success: Array) -> list[Layer]:
    """``platt`` per tier on held-out rows, folded into the last layer: a * output + b is linear."""
    outputs = forward(x, layers).astype(np.float64)
    weight, bias = (part.astype(np.float64) for part in layers[-1])
    for rank in range(len(TIERS)):
        seen = ~np.isnan(success[:, rank])
        slope, shift = platt(outputs[seen, rank], success[seen, rank])
        weight[rank], bias[rank] = slope * weight[rank], slope * bias[rank] + shift
    return [*layers[:-1], (weight.astype(np.float32), bias.astype(np.float32))]


def centres(x: Vectors, held: Vectors, *, seed: int) -> tuple[Vectors, Vectors]:
    """Centres (k, f) of the training features and the sorted distances (m,) of the calibration features from them."""
    means = MiniBatchKMeans(min(CENTRES, len(x)), n_init=3, random_state=seed).fit(x).cluster_centers_
    found = means.astype(np.float32)
    return found, np.sort(distance(held, found, squares(found))).astype(np.float32)


def platt(output: Array, target: Array) -> tuple[float, float]:
    """Slope and shift of the logit of success: Platt scaling (Platt 1999) of ``output`` (n,) to ``target`` (n,): .7
    is a success of weight .7 and a failure of weight .3."""
    if target.min() == target.max():
        return 0.0, _CERTAIN if target.all() else -_CERTAIN
    x = np.concatenate([output, output])[:, None]
    y = np.repeat([1, 0], len(target))
    model = LogisticRegression(C=1e6, max_iter=1_000).fit(x, y, sample_weight=np.concatenate([target, 1 - target]))
    slope = max(float(model.coef_[0, 0]), 0.0)  # a reversed head would be noise, not knowledge
    return slope, float(model.intercept_[0])


def _imputed(x: Vectors, success: Array, weight: Array) -> Array:
    """Targets with every tier: one that was not observed is what a ridge regression on those observed expects, kept
    between the observed tiers below and above it, as a stronger tier is never worse."""
    filled = success.copy()
    for rank in range(len(TIERS)):
        seen = ~np.isnan(success[:, rank])
        if seen.all():
            continue
        if not seen.any():
            filled[:, rank] = 0.5
            continue
        model = Ridge(alpha=10.0).fit(x[seen], success[seen, rank], sample_weight=weight[seen])
        filled[~seen, rank] = model.predict(x[~seen])
    low = np.fmax.accumulate(np.where(np.isnan(success), 0.0, success), axis=1)
    high = np.fmin.accumulate(np.where(np.isnan(success), 1.0, success)[:, ::-1], axis=1)[:, ::-1]
    bounded: Array = np.where(np.isnan(success), np.clip(filled, np.minimum(low, high), high), success)
    return bounded
