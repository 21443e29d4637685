"""Is a prompt like what the classifier learned from? Its distance from the nearest of a few centres of the training
prompts, as a share: how many of the calibration prompts lie farther out. What the lexicon says is left out of it: a
clear case is not a strange one. Little familiarity draws the success
probabilities half-way to the base rate, as what was learned may not hold there."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from router_ml.encoder import LEXICAL

Array = NDArray[np.float64]
Vectors = NDArray[np.float32]

UNFAMILIAR = 0.05  # below this share a prompt counts as unlike the training data
_MOST_DRAWN = 0.5


@dataclass(frozen=True, slots=True)
class Familiarity:
    """``centres`` (k, f - LEXICAL) of the training features but the lexical ones, which come first; ``distances`` (m,)
    of the calibration prompts, ascending; ``base`` (3,): mean success of each tier."""

    centres: Vectors
    distances: Vectors
    base: Array
    _squares: Vectors = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_squares", squares(self.centres))  # once, not at every decision

    def of(self, x: Vectors) -> Array:
        """The share of calibration prompts farther out than each of ``x`` (n, f): 1 at a centre, 0 beyond them all."""
        far = distance(x[:, LEXICAL:], self.centres, self._squares)
        return 1.0 - np.searchsorted(self.distances, far) / len(self.distances)

    def drawn(self, success: Array, familiarity: Array) -> Array:
        """``success`` (n, 3), drawn towards the base rate where ``familiarity`` (n,) is below ``UNFAMILIAR``."""
        if familiarity.min(initial=1.0) >= UNFAMILIAR:
            return success
        share = _MOST_DRAWN * np.clip(1.0 - familiarity / UNFAMILIAR, 0.0, 1.0)[:, None]
        drawn: Array = success + share * (self.base - success)
        return drawn


def distance(x: Vectors, centres: Vectors, lengths: Vectors) -> Vectors:
    """From the nearest of ``centres`` (k, f), whose ``squares`` are ``lengths`` (k,), to each of ``x`` (n, f): (n,)."""
    apart = (lengths - 2.0 * (x @ centres.T)).min(axis=1)
    nearest: Vectors = np.sqrt(np.maximum(squares(x) + apart, 0.0))
    return nearest


def squares(x: Vectors) -> Vectors:
    """Squared lengths (n,) of vectors (n, f)."""
    found: Vectors = np.einsum("nf,nf->n", x, x)
    return found
