"""Why a prompt got its tier: what each phrase adds, which labelled prompts are nearest, and what would change it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from router_ml.text import Prompt, judged_text
from router_ml.types import Complexity, Tier

if TYPE_CHECKING:
    from router_ml.classifier import ComplexityClassifier, Probabilities
    from router_ml.encoder import Encoder, Vectors

MAX_PHRASES = 64
_WORDS_A_PHRASE = 3
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Influence:
    """A phrase and what it adds to the expected rank (0 simple to 2 premium): the difference, exact for this model,
    between the prompt as it is and without the phrase."""

    phrase: str
    added_rank: float


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A labelled prompt and the cosine of its vector with the explained prompt's."""

    text: str
    tier: Tier
    similarity: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """``influences`` from the strongest, either way; ``neighbours`` from the nearest."""

    complexity: Complexity
    influences: tuple[Influence, ...]
    neighbours: tuple[Neighbour, ...]


def explain(classifier: ComplexityClassifier, prompt: Prompt, *, phrases: int = 8, neighbours: int = 3) -> Explanation:
    """Of one prompt or conversation.

    Raises:
        InputError: neither text nor chat messages, or messages without a user turn.
    """
    text = judged_text(prompt)
    parts = list(_phrases(text))
    without = [text[:start] + " " + text[end:] for start, end in parts]
    ranks = expected_rank(classifier.predict_success([text, *without]))
    influences = [
        Influence(text[start:end], float(ranks[0] - rank)) for (start, end), rank in zip(parts, ranks[1:], strict=True)
    ]
    influences.sort(key=lambda influence: -abs(influence.added_rank))
    return Explanation(
        classifier.classify(text), tuple(influences[:phrases]), tuple(_nearest(classifier.encoder, text, neighbours))
    )


def expected_rank(success: Probabilities) -> Probabilities:
    """0 for surely simple to 2 for surely premium, (n,), of success probabilities (n, 3)."""
    simple, complex_, premium = success.T
    rank: Probabilities = (complex_ - simple) + 2.0 * (premium - complex_)
    return rank


def _phrases(text: str) -> Iterator[tuple[int, int]]:
    """Spans of a few words each, at most ``MAX_PHRASES`` of them, over the whole text."""
    words = [match.span() for match in _WORD.finditer(text)]
    size = max(_WORDS_A_PHRASE if len(words) > MAX_PHRASES // 2 else 1, -(-len(words) // MAX_PHRASES))
    for first in range(0, len(words), size):
        last = words[min(first + size, len(words)) - 1]
        yield words[first][0], last[1]


def _nearest(encoder: Encoder, text: str, count: int) -> Iterator[Neighbour]:
    labelled = _labelled()
    similarity = _encoded(encoder) @ _unit(encoder.encode([text]))[0]
    for row in np.argsort(-similarity, kind="stable")[:count]:
        yield Neighbour(labelled[row][0], labelled[row][1], float(similarity[row]))


@lru_cache(maxsize=1)
def _labelled() -> list[tuple[str, Tier]]:
    """Text and tier of the labelled prompts, from an installed wheel or a checkout; none where neither has them."""
    package = Path(__file__).parent
    found = [path for folder in (package, package.parent) if (path := folder / "data" / "prompts.jsonl").is_file()]
    lines = found[0].read_text(encoding="utf-8").splitlines() if found else []
    rows: list[Mapping[str, Any]] = [json.loads(line) for line in lines]
    return [(judged_text(row["prompt"] if "prompt" in row else row["messages"]), Tier(row["tier"])) for row in rows]


def _encoded(encoder: Encoder) -> Vectors:
    """Unit vectors of the labelled prompts; kept for the encoder that was asked last."""
    if _last.get("encoder") is not encoder:
        _last.update(encoder=encoder, vectors=_unit(encoder.encode([text for text, _ in _labelled()])))
    vectors: Vectors = _last["vectors"]
    return vectors


_last: dict[str, Any] = {}


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-9))
    return unit
