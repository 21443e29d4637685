"""The static encoder of its parts: token vectors of the teacher, the lexicon, and the scale of every feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from router_ml.encoder import LEXICAL, StaticEncoder, Vectors, quantised
from router_ml.surface import FEATURES
from router_ml.tokenizer import WordPieceTokenizer
from training import lexicon
from training.dataset import Table
from training.distill import Teacher, token_vectors

DIMENSIONS, ALPHA = 64, 1.5  # as chosen in training/LOG.md
MEANING_SCALE = 2.0  # the many coordinates of meaning together count about as much as the few other features


def unseen(encoder: StaticEncoder, fit: Table, groups: Sequence[str], *, alpha: float, seed: int) -> Vectors:
    """Features (n, f) of prompts that the encoder's lexicon was fitted on, as if it had not been: a head fitted on what
    the lexicon says of its own prompts would believe it too readily."""
    raw = encoder.raw(fit.texts)
    raw[:, :LEXICAL] = lexicon.out_of_fold(encoder.tokenizer, fit, groups, alpha=alpha, seed=seed)
    return encoder.standardised(raw)


def train_encoder(
    teacher: Teacher, fit: Table, groups: Sequence[str], *, dimensions: int, alpha: float, seed: int
) -> tuple[StaticEncoder, dict[str, Any], bytes, Vectors]:
    """The encoder as it will be read back, its tensors, its tokenizer.json, and the features (n, f) of ``fit``, the
    lexicon's part of them out of fold."""
    document = teacher.tokenizer_json()
    tokenizer = WordPieceTokenizer.from_json(document)
    vectors = token_vectors(teacher, tokenizer, fit.texts, dimensions=dimensions, seed=seed)
    parts = {"vectors": vectors, **lexicon.fit(tokenizer, fit, alpha=alpha, seed=seed)}
    raw = StaticEncoder.unscaled(tokenizer, **parts).raw(fit.texts)
    raw[:, :LEXICAL] = lexicon.out_of_fold(tokenizer, fit, groups, alpha=alpha, seed=seed)
    scale = np.maximum(raw.std(axis=0), 1e-6)
    scale[LEXICAL + FEATURES :] *= MEANING_SCALE
    parts |= {"mean": raw.mean(axis=0), "scale": scale}
    tensors = quantised(parts)
    encoder = StaticEncoder.from_tensors(tokenizer, tensors)
    return encoder, tensors, document.encode(), encoder.standardised(raw)
