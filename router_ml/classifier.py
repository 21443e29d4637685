"""Encoder + fitted head -> how likely each tier is to answer acceptably."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml import registry
from router_ml.encoder import LEXICAL, Encoder, StaticEncoder
from router_ml.errors import ArtefactError, InputError
from router_ml.familiarity import Familiarity
from router_ml.policy import Calibration
from router_ml.text import Prompt, judged_text
from router_ml.tokenizer import WordPieceTokenizer
from router_ml.types import TIERS, Complexity

Probabilities = NDArray[np.float64]
Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


class ComplexityClassifier:
    """Says, for a prompt, P(acceptable answer | tier) for each tier; class probabilities follow from their differences.

    Use ``ComplexityClassifier.load()``; the constructor takes finished parts.
    """

    def __init__(
        self,
        encoder: Encoder,
        layers: Sequence[Layer],
        *,
        version: str,
        calibration: Calibration,
        card: Mapping[str, Any],
        familiarity: Familiarity | None = None,
    ) -> None:
        """``layers``: (weight (out, in), bias (out,)) of a dense network with ReLU between, three logits at its end.
        Raises ArtefactError where shapes do not fit."""
        widths = [weight.shape[-1] for weight, _ in layers[1:]] + [len(TIERS)]
        for (weight, bias), width in zip(layers, widths, strict=True):
            if weight.ndim != 2 or bias.shape != weight.shape[:1] or len(weight) != width:
                raise ArtefactError(f"head layers do not fit: {[layer[0].shape for layer in layers]}")
        if isinstance(encoder, StaticEncoder) and encoder.features != layers[0][0].shape[1]:
            raise ArtefactError(f"encoder of {encoder.features} features, head of {layers[0][0].shape[1]}")
        self.encoder = encoder
        self.version = version
        self.calibration = calibration
        self.card = card
        self.classes_: NDArray[np.str_] = np.array([tier.value for tier in TIERS])
        self._layers = tuple(layers)
        self._familiarity = familiarity

    @classmethod
    def load(cls, path: str | Path | None = None) -> ComplexityClassifier:
        """The artefact in folder ``path``, or the packaged one.

        Raises:
            ArtefactError: missing, damaged (a sha256 differs), of another format, or of shapes that do not fit.
        """
        artefact = registry.read(Path(path) if path is not None else registry.default_path())
        try:
            encoder = StaticEncoder.from_tensors(WordPieceTokenizer.from_json(artefact.tokenizer), artefact.encoder)
            names = sorted(name for name in artefact.head if name.endswith(".weight"))
            layers = [(artefact.head[name], artefact.head[name.replace(".weight", ".bias")]) for name in names]
            calibration = Calibration(
                *(
                    artefact.head[f"calibration.{part}"].astype(np.float64)
                    for part in ("success", "quality", "input_tokens")
                )
            )
            centres, distances = artefact.head["familiarity.centres"], artefact.head["familiarity.distances"]
            version = str(artefact.card["version"])
        except (KeyError, IndexError, ValueError) as exc:
            raise ArtefactError(f"the artefact lacks a part: {exc}") from exc
        if not layers:
            raise ArtefactError("the artefact's head has no layers")
        if centres.ndim != 2 or centres.shape[1] != encoder.features - LEXICAL or not len(distances):
            raise ArtefactError(f"familiarity centres of shape {centres.shape} for {encoder.features} features")
        familiarity = Familiarity(centres, distances, calibration.quality.mean(axis=0))
        return cls(
            encoder, layers, version=version, calibration=calibration, card=artefact.card, familiarity=familiarity
        )

    def classify(self, prompt: Prompt) -> Complexity:
        """Of one prompt or conversation. Any text has an answer, an empty one too.

        Raises:
            InputError: neither text nor chat messages, or messages without a user turn.
        """
        success, familiarity = self._judge([judged_text(prompt)])
        return Complexity(dict(zip(TIERS, success[0].tolist(), strict=True)), self.version, float(familiarity[0]))

    def predict_success(self, prompts: Sequence[Prompt]) -> Probabilities:
        """P(acceptable answer | tier), shape (len(prompts), 3), non-decreasing along tiers, finite for any input.

        Raises:
            InputError: a single string, or an item that is neither text nor chat messages.
        """
        if isinstance(prompts, str):
            raise InputError("predict takes a list of prompts; for a single one use classify(prompt)")
        return self._judge([judged_text(prompt) for prompt in prompts])[0]

    def predict_proba(self, prompts: Sequence[Prompt]) -> Probabilities:
        """P(tier is the cheapest that answers acceptably), shape (len(prompts), 3), columns as ``classes_``."""
        simple, complex_, premium = self.predict_success(prompts).T
        return np.stack([simple + (1.0 - premium), complex_ - simple, premium - complex_], axis=1)

    def predict(self, prompts: Sequence[Prompt]) -> NDArray[np.str_]:
        """The median tier of each prompt, as ``Complexity.tier`` has it, shape (len(prompts),)."""
        labels: NDArray[np.str_] = self.classes_[median_rank(self.predict_proba(prompts))]
        return labels

    def _judge(self, texts: Sequence[str]) -> tuple[Probabilities, Probabilities]:
        """Success (n, 3) and familiarity (n,)."""
        x = self.encoder.encode(texts)
        success = success_of(forward(x, self._layers))
        if self._familiarity is None:
            return success, np.ones(len(success))
        familiarity = self._familiarity.of(x)
        return self._familiarity.drawn(success, familiarity), familiarity


def forward(x: NDArray[np.float32], layers: Sequence[Layer]) -> NDArray[np.float32]:
    """Logits of the dense network, shape (n, 3)."""
    for number, (weight, bias) in enumerate(layers):
        x = (np.maximum(x, 0.0) if number else x) @ weight.T + bias
    return x


def median_rank(probabilities: Probabilities) -> NDArray[np.int64]:
    """The rank (n,) that the needed tier is at most with a chance of a half, of P(tier is needed) (n, 3)."""
    ranks: NDArray[np.int64] = (np.cumsum(probabilities, axis=1)[:, :-1] < 0.5).sum(axis=1)
    return ranks


def success_of(logits: NDArray[np.float32]) -> Probabilities:
    """Logistic of each, then made non-decreasing along tiers: a stronger model is never thought worse."""
    bounded = np.minimum(np.maximum(logits.astype(np.float64), -30.0), 30.0)
    return np.maximum.accumulate(1.0 / (1.0 + np.exp(-bounded)), axis=1)
