"""What single tokens, pairs of neighbours and phrases of three tokens say of each tier: two ridge regressions of the
success targets on TF-IDF, one of tokens and pairs, one of phrases.

Pairs and phrases are hashed into buckets as the encoder does. A text's features are its TF-IDF values by their length,
where every occurrence counts for itself: the encoder then needs sums over the text and no sorting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from tqdm import tqdm

from router_ml.encoder import BUCKETS, LEXICAL, StaticEncoder, Vectors, pair_buckets, phrase_buckets
from router_ml.tokenizer import WordPieceTokenizer
from router_ml.types import TIERS
from training.dataset import Table
from training.metrics import Array

MIN_TEXTS = 2  # a token, pair or phrase of fewer texts says nothing that could be repeated
FOLDS = 5

Lexicon = dict[str, Vectors]
"""As ``StaticEncoder`` takes them: ``words`` (V, 4), ``pairs`` and ``phrases`` (BUCKETS, 4), ``bias`` (2, 3)."""


def fit(tokenizer: WordPieceTokenizer, table: Table, *, alpha: float, seed: int) -> Lexicon:
    """``alpha`` is scikit-learn's regularisation. A row is left out where its tier was not observed (NaN)."""
    return _fit(_terms(tokenizer, table.texts), table, alpha, seed)


def out_of_fold(
    tokenizer: WordPieceTokenizer, table: Table, groups: Sequence[str], *, alpha: float, seed: int
) -> Vectors:
    """The encoder's lexical features (n, LEXICAL) of each text by lexicons fitted without the text's group: the head
    must learn how far to believe them on texts that they were not fitted on."""
    features = np.zeros((len(table), LEXICAL), dtype=np.float32)
    no_vectors = np.zeros((len(tokenizer), 1), dtype=np.float32)
    terms = _terms(tokenizer, table.texts)
    folds = GroupKFold(min(FOLDS, len(set(groups))), shuffle=True, random_state=seed)
    for kept, left_out in tqdm(list(folds.split(features, groups=groups)), desc="lexicon, out of fold", unit="fold"):
        mask = np.zeros(len(table), dtype=bool)
        mask[kept] = True
        part = _fit(tuple(counts[kept] for counts in terms), table.rows(mask), alpha, seed)
        encoder = StaticEncoder.unscaled(tokenizer, no_vectors, **part)
        features[left_out] = encoder.raw([table.texts[row] for row in left_out])[:, :LEXICAL]
    return features


def _terms(tokenizer: WordPieceTokenizer, texts: Sequence[str]) -> tuple[sp.csr_matrix, ...]:
    """Occurrences of tokens and pairs (n, V + BUCKETS), and of phrases (n, BUCKETS)."""
    ids = [tokenizer.encode(text) for text in texts]
    tokens_and_pairs = (np.concatenate([of, len(tokenizer) + pair_buckets(of)]) for of in ids)
    return _counts(tokens_and_pairs, len(tokenizer) + BUCKETS), _counts(map(phrase_buckets, ids), BUCKETS)


def _counts(terms: Iterable[NDArray[np.intp]], width: int) -> sp.csr_matrix:
    found = list(terms)
    rows = np.repeat(np.arange(len(found)), [len(of) for of in found])
    columns = np.concatenate(found) if found else np.empty(0, dtype=np.intp)
    return sp.csr_matrix((np.ones(len(columns)), (rows, columns)), shape=(len(found), width))


def _fit(terms: Sequence[sp.csr_matrix], table: Table, alpha: float, seed: int) -> Lexicon:
    (tables, bias), (phrases, phrase_bias) = (_table(counts, table, alpha, seed) for counts in terms)
    biases = np.stack([bias, phrase_bias])
    return {"words": tables[:-BUCKETS], "pairs": tables[-BUCKETS:], "phrases": phrases, "bias": biases}


def _table(counts: sp.csr_matrix, table: Table, alpha: float, seed: int) -> tuple[Vectors, Vectors]:
    """A weight per tier times the IDF, and the IDF squared, of every term; a bias per tier."""
    idf = _idf(counts)
    x = _tfidf(counts, idf)
    weights = np.zeros((x.shape[1], len(TIERS) + 1), dtype=np.float32)
    bias = np.zeros(len(TIERS), dtype=np.float32)
    for tier in TIERS:
        model = _ridge(x, table.success[:, tier.rank], table.weight, alpha, seed)
        weights[:, tier.rank] = model.coef_ * idf
        bias[tier.rank] = model.intercept_
    weights[:, -1] = idf**2
    return weights, bias


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
