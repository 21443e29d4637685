"""Held-out figures of a classifier beside the baselines it has to beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from router_ml.encoder import Vectors
from router_ml.policy import Array
from router_ml.types import TIERS, Tier
from training.dataset import Table
from training.metrics import Ranks, bootstrap, brier, ece, tier_metrics

Embed = Callable[[list[str], str], Vectors]


def ranks(labels: Any) -> Ranks:
    """Tier names (n,) as 0, 1, 2."""
    return np.array([Tier(str(label)).rank for label in labels], dtype=np.int64)


def chosen(success: Array) -> Ranks:
    """The most probable tier of success probabilities (n, 3), as ``Complexity.tier`` has it."""
    simple, complex_, premium = success.T
    needed: Ranks = np.stack([simple + 1 - premium, complex_ - simple, premium - complex_], axis=1).argmax(axis=1)
    return needed


def report(success: Array, test: Table, *, seed: int) -> dict[str, Any]:
    """Figures with 95 % intervals, and per tier Brier and ECE of the success probabilities."""
    needed, predicted = ranks(test.labels), chosen(success)
    confusion = np.zeros((len(TIERS), len(TIERS)), dtype=int)
    np.add.at(confusion, (needed, predicted), 1)
    return {
        "prompts": len(test),
        "figures": tier_metrics(needed, predicted),
        "interval95": bootstrap(needed, predicted, seed=seed),
        "confusion": confusion.tolist(),
        "brier": {tier: brier(success[:, tier.rank], test.success[:, tier.rank]) for tier in TIERS},
        "ece": {tier: ece(success[:, tier.rank], test.success[:, tier.rank]) for tier in TIERS},
    }


def baselines(train: Table, test: Table, embed: Embed, *, seed: int) -> dict[str, dict[str, float]]:
    """Majority, length, TF-IDF + logistic regression, kNN and logistic regression on the teacher's embeddings."""
    y, needed = ranks(train.labels), ranks(test.labels)
    length_train, length_test = (np.log1p([[len(text)] for text in part.texts]) for part in (train, test))
    words = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), _logistic(seed, 10.0))
    x_train, x_test = embed(train.texts, "teacher, train"), embed(test.texts, "teacher, test")
    neighbours = KNeighborsClassifier(min(15, len(train)), weights="distance", metric="cosine")
    return {
        "majority": tier_metrics(needed, DummyClassifier().fit(length_train, y).predict(length_test)),
        "length": tier_metrics(needed, _logistic(seed, 10.0).fit(length_train, y).predict(length_test)),
        "tf-idf + logistic": tier_metrics(needed, words.fit(train.texts, y).predict(test.texts)),
        "kNN on teacher": tier_metrics(needed, neighbours.fit(x_train, y).predict(x_test)),
        "logistic on teacher": tier_metrics(needed, _logistic(seed, 10.0).fit(x_train, y).predict(x_test)),
    }


def _logistic(seed: int, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=2_000, random_state=seed)
