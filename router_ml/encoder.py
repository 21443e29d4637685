"""Text -> vectors. One protocol of one method; a static encoder on numpy to serve, or a transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import ArtefactError, ConfigError
from router_ml.surface import CLASSES, FEATURES, surface, token_classes
from router_ml.types import TIERS

if TYPE_CHECKING:
    from router_ml.tokenizer import WordPieceTokenizer

Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """Anything that turns n texts into an array of shape (n, dimensions)."""

    def encode(self, texts: Sequence[str]) -> Vectors: ...


BUCKETS = 1 << 18  # of pairs of neighbouring tokens, and of phrases of three; a power of two
ENDS = 32  # tokens at either end that are taken for themselves: what is asked stands at one of them
LEXICAL = 4 * len(TIERS)  # features: words and pairs of the whole, the first and the last ENDS tokens; phrases
_CLIP = 4.0  # standard deviations: a freak of a feature is no more than a clear case


class StaticEncoder:
    """Tables instead of layers, so that a text takes microseconds: features that a small head can work with.

    What single tokens and pairs of neighbours say of each tier (a linear model on TF-IDF, ``training/lexicon.py``),
    over all tokens, the first and the last ``ENDS``; what phrases of three tokens say; the look of the text
    (``surface``); and the mean of the tokens' vectors, over the same three (distilled from a sentence-transformers
    teacher in the way of model2vec, https://github.com/MinishLab/model2vec). All standardised.
    """

    def __init__(
        self,
        tokenizer: WordPieceTokenizer,
        vectors: Vectors,
        words: Vectors,
        pairs: Vectors,
        phrases: Vectors,
        bias: Vectors,
        mean: Vectors,
        scale: Vectors,
    ) -> None:
        """``vectors``: (V, d) for V tokens; ``words`` (V, 4), ``pairs`` and ``phrases`` (BUCKETS, 4): a weight per tier
        times the IDF, and the IDF squared; ``bias`` (2, 3), of words with pairs and of phrases; ``mean`` and ``scale``
        (features,) of the raw features.

        Raises:
            ArtefactError: shapes or values do not fit.
        """
        shapes = {
            "vectors": (vectors, (len(tokenizer), vectors.shape[-1])),
            "words": (words, (len(tokenizer), len(TIERS) + 1)),
            "pairs": (pairs, (BUCKETS, len(TIERS) + 1)),
            "phrases": (phrases, (BUCKETS, len(TIERS) + 1)),
            "bias": (bias, (2, len(TIERS))),
            "mean": (mean, (LEXICAL + FEATURES + 3 * vectors.shape[-1],)),
            "scale": (scale, mean.shape),
        }
        for name, (array, shape) in shapes.items():
            if array.shape != shape:
                raise ArtefactError(f"the encoder's {name} is of shape {array.shape}, not {shape}")
            if not np.isfinite(array).all():
                raise ArtefactError(f"the encoder's {name} holds NaN or infinity")
        if not (scale > 0).all():
            raise ArtefactError("the encoder's scale holds values that are not above 0")
        self.tokenizer = tokenizer
        self.dimensions, self.features = vectors.shape[1], len(mean)
        self._table = np.hstack([vectors, token_classes(tokenizer.vocabulary), words]).astype(np.float32)
        self._pairs, self._phrases = (np.ascontiguousarray(part, dtype=np.float32) for part in (pairs, phrases))
        self._bias, self._mean, self._factor = bias, mean, np.float32(1.0) / scale

    @classmethod
    def from_tensors(cls, tokenizer: WordPieceTokenizer, tensors: Mapping[str, NDArray[Any]]) -> StaticEncoder:
        """Of what ``quantised`` made. Raises KeyError for a missing part, ArtefactError for shapes that do not fit."""
        return cls(tokenizer, *(_restored(tensors, name) for name in _PARTS))

    @classmethod
    def unscaled(cls, tokenizer: WordPieceTokenizer, vectors: Vectors, **lexicon: Vectors) -> StaticEncoder:
        """One whose features are not standardised yet, to measure their mean and scale with ``raw``; ``lexicon``: the
        constructor's ``words``, ``pairs``, ``phrases`` and ``bias``."""
        width = LEXICAL + FEATURES + 3 * vectors.shape[1]
        zeros, ones = np.zeros(width, dtype=np.float32), np.ones(width, dtype=np.float32)
        return cls(tokenizer, vectors, **lexicon, mean=zeros, scale=ones)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Standardised features of shape (len(texts), features)."""
        return self.standardised(self.raw(texts))

    def raw(self, texts: Sequence[str]) -> Vectors:
        """Features before they are standardised, same shape."""
        if not len(texts):
            return np.empty((0, self.features), dtype=np.float32)
        return np.stack([self._features(self.tokenizer.encode(text)) for text in texts])

    def standardised(self, raw: Vectors) -> Vectors:
        """Less the mean, by the scale, cut at ``_CLIP``."""
        scaled = (raw - self._mean) * self._factor
        np.minimum(scaled, _CLIP, out=scaled)
        return np.maximum(scaled, -_CLIP, out=scaled)

    def _features(self, ids: NDArray[np.intp]) -> Vectors:
        n, d = len(ids), self.dimensions
        if not n:
            return np.zeros(len(self._mean), dtype=np.float32)
        rows, pairs = self._table.take(ids, axis=0), self._pairs.take(pair_buckets(ids), axis=0)
        phrases = self._phrases.take(phrase_buckets(ids), axis=0)
        total, words = rows.sum(axis=0), rows[:, d + CLASSES :]
        looks = surface(total[d : d + CLASSES], n, len(set(ids.tolist())))
        said, meant = _said(total[d + CLASSES :] + pairs.sum(axis=0)) + self._bias[0], _unit(total[:d])
        lexical, meaning = [said] * 3, [meant] * 3
        if n > ENDS:
            lexical[1] = _said(words[:ENDS].sum(axis=0) + pairs[:ENDS].sum(axis=0)) + self._bias[0]
            lexical[2] = _said(words[-ENDS:].sum(axis=0) + pairs[-ENDS:].sum(axis=0)) + self._bias[0]
            meaning[1:] = _unit(rows[:ENDS, :d].sum(axis=0)), _unit(rows[-ENDS:, :d].sum(axis=0))
        return np.concatenate([*lexical, _said(phrases.sum(axis=0)) + self._bias[1], looks, *meaning])


def quantised(parts: Mapping[str, Vectors]) -> dict[str, NDArray[Any]]:
    """The encoder's parts by name as tensors to store: the vectors in 8 bits with a scale each, the tables in 16."""
    scales = np.maximum(np.abs(parts["vectors"]).max(axis=1), 1e-12) / 127
    return {
        "vectors": np.round(parts["vectors"] / scales[:, None]).astype(np.int8),
        "vectors.scale": scales.astype(np.float32),
        "words": parts["words"].astype(np.float16),
        "pairs": parts["pairs"].astype(np.float16),
        "phrases": parts["phrases"].astype(np.float16),
        **{name: parts[name].astype(np.float32) for name in ("bias", "mean", "scale")},
    }


_PARTS = ("vectors", "words", "pairs", "phrases", "bias", "mean", "scale")


def _restored(tensors: Mapping[str, NDArray[Any]], name: str) -> Vectors:
    tensor = tensors[name].astype(np.float32)
    return tensor * tensors["vectors.scale"][:, None] if name == "vectors" else tensor


def pair_buckets(ids: NDArray[np.intp]) -> NDArray[np.intp]:
    """The bucket of each pair of neighbours in ``ids`` (n,), shape (n - 1,)."""
    return (ids[:-1] * 1_000_003 + ids[1:] * 7_919) & (BUCKETS - 1)


def phrase_buckets(ids: NDArray[np.intp]) -> NDArray[np.intp]:
    """The buckets of each three tokens in a row, and of their first and third, in ``ids`` (n,), shape (2n - 4,)."""
    first, third = ids[:-2] * 2_000_003, ids[2:] * 15_485_863
    return np.concatenate([first + ids[1:-1] * 7_919 + third, first + third]) & (BUCKETS - 1)


def _said(sums: Vectors) -> Vectors:
    """A linear model on TF-IDF values by their length: sums (4,) of what the terms say, and of their IDF squared."""
    return sums[:-1] / np.float32(math.sqrt(max(float(sums[-1]), 1e-6)))


def _unit(vector: Vectors) -> Vectors:
    length = float(np.sqrt(vector @ vector))
    return vector / np.float32(length) if length > 0.0 else vector


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
