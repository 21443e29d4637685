"""Text -> vectors. One protocol of one method; a static encoder on numpy to serve, or a transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import ArtefactError, ConfigError

if TYPE_CHECKING:
    from router_ml.tokenizer import WordPieceTokenizer

Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """Anything that turns n texts into an array of shape (n, dimensions)."""

    def encode(self, texts: Sequence[str]) -> Vectors: ...


class StaticEncoder:
    """The mean of a text's token vectors, scaled to unit length. No network layers, so it takes microseconds.

    The vectors are distilled from a sentence-transformers teacher and tuned on the task (``training/distill.py``);
    the form is that of model2vec (https://github.com/MinishLab/model2vec). A token's weight is its vector's length.
    """

    def __init__(self, tokenizer: WordPieceTokenizer, vectors: Vectors) -> None:
        """``vectors``: shape (len(tokenizer), dimensions). Raises ArtefactError where shapes or values do not fit."""
        if vectors.ndim != 2 or len(vectors) != len(tokenizer):
            raise ArtefactError(f"token vectors of shape {vectors.shape} for a vocabulary of {len(tokenizer)}")
        if not np.isfinite(vectors).all():
            raise ArtefactError("token vectors hold NaN or infinity")
        self.tokenizer = tokenizer
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of shape (len(texts), dimensions); zeros for a text without a token."""
        return np.stack([self._encode(text) for text in texts]) if len(texts) else self.vectors[:0]

    def _encode(self, text: str) -> Vectors:
        total: Vectors = self.vectors.take(self.tokenizer.encode(text), axis=0).sum(axis=0)
        length = float(np.sqrt(total @ total))
        return total / np.float32(length) if length > 0.0 else total


class SentenceTransformerEncoder:
    """A sentence-transformers model by name or path: the teacher, and the slow but stronger way to serve."""

    def __init__(self, name: str, *, device: str | None = None, batch_size: int = 32) -> None:
        """Raises ConfigError where sentence-transformers is not installed or the model cannot be had."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as exc:
            raise ConfigError("sentence-transformers is not installed: pip install 'router-ml[train]'") from exc
        try:
            self.model = SentenceTransformer(name, device=device)
        except (OSError, ValueError) as exc:
            raise ConfigError(f"the model {name!r} is neither a folder nor to be had from the hub: {exc}") from exc
        self.name = name
        self.batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of shape (len(texts), dimensions)."""
        vectors: Vectors = self.model.encode(
            list(texts), batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors.astype(np.float32)
