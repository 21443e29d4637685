"""sentence-transformers teacher -> static encoder: every token's own embedding, reduced by PCA and weighted by rarity.

The recipe is model2vec's (https://github.com/MinishLab/model2vec); the weight is SIF, a / (a + p(token)), from Arora et
al. 2017, with p counted on the training texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from joblib import Memory
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from tqdm import tqdm

from router_ml.encoder import SentenceTransformerEncoder, StaticEncoder, Vectors
from router_ml.errors import ConfigError
from router_ml.tokenizer import WordPieceTokenizer

SIF_A = 1e-3
_CHUNK = 2_048


class Teacher:
    """A sentence-transformers model whose embeddings are cached on disk, keyed by its weights and the texts."""

    def __init__(self, name: str, cache: Path) -> None:
        """``name``: a model name or folder. Raises ConfigError where it cannot be loaded."""
        self.encoder = SentenceTransformerEncoder(name)
        self.name = name
        self.fingerprint = _fingerprint(self.encoder)
        self._cached = Memory(cache, verbose=0).cache(_encode, ignore=["encoder"])

    def tokenizer_json(self) -> str:
        """The fast tokenizer's JSON. Raises ConfigError where the model has none."""
        backend = getattr(self.encoder.model.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(f"the teacher {self.name!r} has no fast tokenizer to distil from")
        return str(backend.to_str())

    def encode(self, texts: Sequence[str], label: str) -> Vectors:
        """Unit vectors of shape (len(texts), dimensions), with a progress bar."""
        parts = [
            self._cached(self.encoder, self.fingerprint, list(texts[start : start + _CHUNK]))
            for start in tqdm(range(0, len(texts), _CHUNK), desc=label, unit="chunk")
        ]
        return np.concatenate(parts)


def _encode(encoder: SentenceTransformerEncoder, fingerprint: str, texts: list[str]) -> Vectors:  # noqa: ARG001 - a key
    return encoder.encode(texts)


def _fingerprint(encoder: SentenceTransformerEncoder) -> str:
    """Of the weights themselves: two models of one name are two teachers."""
    import hashlib

    digest = hashlib.sha256(str(encoder.model.max_seq_length).encode())
    for name, tensor in sorted(encoder.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def distil(teacher: Teacher, texts: Sequence[str], *, dimensions: int, seed: int) -> tuple[StaticEncoder, bytes]:
    """A static encoder of ``dimensions``, and its tokenizer.json. ``texts`` give the token frequencies."""
    document = teacher.tokenizer_json()
    tokenizer = WordPieceTokenizer.from_json(document)
    pieces = sorted(tokenizer.vocabulary, key=tokenizer.vocabulary.__getitem__)
    vectors = teacher.encode([piece.removeprefix("##") for piece in pieces], "distil tokens")
    dimensions = min(dimensions, *vectors.shape)
    reduced = PCA(dimensions, random_state=seed, svd_solver="covariance_eigh").fit_transform(vectors)
    counts = np.bincount(np.concatenate([tokenizer.encode(text) for text in texts]), minlength=len(tokenizer))
    weights: NDArray[np.float64] = SIF_A / (SIF_A + counts / max(1, counts.sum()))
    return StaticEncoder(tokenizer, (reduced * weights[:, None]).astype(np.float32)), document.encode()
