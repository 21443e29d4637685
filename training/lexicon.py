"""What single tokens and pairs of neighbours say of each tier: a ridge regression of the success targets on TF-IDF.

Pairs are hashed into buckets as the encoder does. A text's features are its TF-IDF values by their length, where every
occurrence counts for itself: the encoder then needs sums over the text and no sorting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from tqdm import tqdm

from router_ml.encoder import PAIRS, Vectors, pair_buckets
from router_ml.tokenizer import WordPieceTokenizer
from router_ml.types import TIERS
from training.metrics import Array

MIN_TEXTS = 2  # a token or pair of fewer texts says nothing that could be repeated
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Lexicon:
    """As ``StaticEncoder`` takes them: ``words`` (V, 4), ``pairs`` (PAIRS, 4), ``bias`` (3,)."""

    words: Vectors
    pairs: Vectors
    bias: Vectors


def counts(tokenizer: WordPieceTokenizer, texts: Sequence[str]) -> sp.csr_matrix:
    """Occurrences of every token and pair bucket, (len(texts), V + PAIRS)."""
    found = []
    for text in texts:
        ids = tokenizer.encode(text)
        found.append(np.concatenate([ids, len(tokenizer) + pair_buckets(ids)]))
    rows = np.repeat(np.arange(len(found)), [len(ids) for ids in found])
    columns = np.concatenate(found) if found else np.empty(0, dtype=np.intp)
    ones = np.ones(len(columns), dtype=np.float64)
    return sp.csr_matrix((ones, (rows, columns)), shape=(len(found), len(tokenizer) + PAIRS))


def fit(occurrences: sp.csr_matrix, success: Array, weight: Array, *, alpha: float, seed: int) -> Lexicon:
    """``success`` (n, 3), NaN where a tier was not observed; ``alpha`` is scikit-learn's regularisation."""
    idf = _idf(occurrences)
    x = _tfidf(occurrences, idf)
    coefficients = np.zeros((x.shape[1], len(TIERS) + 1), dtype=np.float32)
    bias = np.zeros(len(TIERS), dtype=np.float32)
    for tier in TIERS:
        model = _ridge(x, success[:, tier.rank], weight, alpha, seed)
        coefficients[:, tier.rank] = model.coef_ * idf
        bias[tier.rank] = model.intercept_
    coefficients[:, -1] = idf**2
    return Lexicon(coefficients[:-PAIRS], coefficients[-PAIRS:], bias)


def out_of_fold(
    occurrences: sp.csr_matrix, success: Array, weight: Array, groups: Sequence[str], *, alpha: float, seed: int
) -> Vectors:
    """What the lexicon says of each text (n, 3) when fitted without the text's group: the head must learn how far to
    believe it on texts it was not fitted on."""
    said = np.zeros(success.shape, dtype=np.float32)
    folds = GroupKFold(min(FOLDS, len(set(groups))), shuffle=True, random_state=seed)
    for kept, left_out in tqdm(list(folds.split(said, groups=groups)), desc="lexicon, out of fold", unit="fold"):
        part = occurrences[kept]
        idf = _idf(part)
        x, held = _tfidf(part, idf), _tfidf(occurrences[left_out], idf)
        for tier in TIERS:
            model = _ridge(x, success[kept, tier.rank], weight[kept], alpha, seed)
            said[left_out, tier.rank] = model.predict(held)
    return said


def _ridge(x: sp.csr_matrix, target: Array, weight: Array, alpha: float, seed: int) -> Ridge:
    seen = ~np.isnan(target)
    model = Ridge(alpha=alpha, solver="sag", max_iter=100, tol=1e-3, random_state=seed)
    return model.fit(x[seen], target[seen], sample_weight=weight[seen])


def _idf(occurrences: sp.csr_matrix) -> Array:
    """Smoothed inverse document frequency (scikit-learn's), 0 where fewer than ``MIN_TEXTS`` texts hold the feature."""
    texts = np.asarray((occurrences > 0).sum(axis=0)).ravel()
    idf: Array = np.where(texts >= MIN_TEXTS, np.log((1 + occurrences.shape[0]) / (1 + texts)) + 1.0, 0.0)
    return idf


def _tfidf(occurrences: sp.csr_matrix, idf: Array) -> sp.csr_matrix:
    lengths = np.sqrt(np.maximum(occurrences @ idf**2, 1e-6))
    return sp.csr_matrix(sp.diags(1.0 / lengths) @ occurrences @ sp.diags(idf))
