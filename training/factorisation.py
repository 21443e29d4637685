"""RouteLLM's matrix factorisation (arXiv 2406.18665, section 4.2) on embeddings and outcomes of one's own.

A model is a learned unit vector, a prompt a projection of its embedding; their product, weighed and summed, is the
model's strength on that prompt, and the difference of two strengths the logit that one beats the other (Bradley-Terry).
Form, optimiser and noise are those of routellm 0.2, ``matrix_factorization/train_matrix_factorization.py``; that
package itself embeds prompts through OpenAI's API alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from router_ml.encoder import Vectors
from training.metrics import Array


@dataclass(frozen=True, slots=True)
class Recipe:
    """How RouteLLM trains; ``noise`` is the standard deviation added to each number of a prompt's embedding."""

    dimensions: int = 128
    epochs: int = 100
    batch: int = 64
    rate: float = 3e-4
    decay: float = 1e-5
    noise: float = 0.1


class MatrixFactorisation(nn.Module):
    """``models`` vectors and a projection of embeddings of ``text_dimensions`` into their space."""

    def __init__(self, models: int, text_dimensions: int, dimensions: int) -> None:
        super().__init__()
        self.P = nn.Embedding(models, dimensions)
        self.text_proj = nn.Linear(text_dimensions, dimensions, bias=False)
        self.classifier = nn.Linear(dimensions, 1, bias=False)

    def forward(self, a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        """Logits (n,) that models ``a`` (n,) beat models ``b`` (n,) on prompts of embeddings ``x`` (n, d)."""
        apart = functional.normalize(self.P(a), dim=1) - functional.normalize(self.P(b), dim=1)
        logits: Tensor = self.classifier(apart * self.text_proj(x)).squeeze(1)
        return logits

    @torch.no_grad()
    def advantage(self, strong: int, weak: int, x: Vectors) -> Array:
        """Logits (n,) that model ``strong`` beats model ``weak`` on prompts of embeddings ``x`` (n, d)."""
        pair = (torch.full((len(x),), model) for model in (strong, weak))
        logits: Array = self(*pair, torch.from_numpy(x)).double().numpy()
        return logits


def fit(x: Vectors, quality: Array, weight: Array, *, seed: int, recipe: Recipe | None = None) -> MatrixFactorisation:
    """Learns from every pair of models seen on a prompt.

    ``x`` (n, d) embeddings; ``quality`` (n, models) in 0..1, NaN where a model was not seen; ``weight`` (n,). The
    target is (1 + difference of quality) / 2: of several models behind one column, the share of meetings won, with half
    a win for a tie. The same seed gives the same model.
    """
    recipe = recipe or Recipe()
    prompt, a, b = _meetings(quality)
    won = torch.from_numpy((1 + quality[prompt, a] - quality[prompt, b]) / 2).float()
    embeddings, heavy = torch.from_numpy(x).float(), torch.from_numpy(weight[prompt] / weight[prompt].mean()).float()
    rows, first, second = (torch.from_numpy(numbers) for numbers in (prompt, a, b))
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MatrixFactorisation(quality.shape[1], x.shape[1], recipe.dimensions)
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    for _ in range(recipe.epochs):
        for part in torch.split(torch.randperm(len(won), generator=random), recipe.batch):
            seen = embeddings[rows[part]]
            seen = seen + recipe.noise * torch.randn(seen.shape, generator=random)
            logits = model(first[part], second[part], seen)
            loss = functional.binary_cross_entropy_with_logits(logits, won[part], weight=heavy[part])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
    return model


def _meetings(quality: Array) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row, first and second model (m,) of every pair of models that were seen on the same prompt."""
    parts = []
    for a, b in combinations(range(quality.shape[1]), 2):
        rows = np.flatnonzero(~np.isnan(quality[:, a]) & ~np.isnan(quality[:, b]))
        parts.append(np.stack([rows, np.full(len(rows), a), np.full(len(rows), b)]))
    prompt, first, second = np.concatenate(parts, axis=1)
    return prompt, first, second
