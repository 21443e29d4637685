"""The teacher fine-tuned on the success targets, one output a tier: what it knows is then what decides a tier.

A transformer in, a transformer out: ``distill`` makes tables of either. Minutes on two cores, faster on a GPU.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import nn
from tqdm import tqdm

from router_ml.types import TIERS
from training.dataset import Table
from training.distill import Teacher

Rows = NDArray[np.int64]

HEAD_CHARS, TAIL_CHARS = 600, 300  # of a long text: what is asked stands at one of its ends
_BATCH = 32
_BUCKET = 10 * _BATCH  # rows sorted by length together, so that a batch is padded little
_ENCODER_RATE, _OUTPUT_RATE = 1e-4, 1e-3
_SHARPNESS = 10.0  # the embeddings are unit vectors: without it their logits stay within a narrow band


def finetuned(teacher: Teacher, fit: Table, *, epochs: int, seed: int, cache: Path) -> Teacher:
    """The teacher after ``epochs`` over ``fit``, kept in ``cache`` by its weights and the rows; the given one is left
    as it is. Rows count by their weight, tiers that were not observed (NaN) not at all."""
    folder = cache / "finetuned" / _key(teacher, fit, epochs, seed)
    if not (folder / "modules.json").exists():
        model = copy.deepcopy(teacher.encoder.model)
        _train(model, fit, epochs, seed)
        model.save(str(folder), create_model_card=False)
    return Teacher(str(folder), cache)


def _train(model: SentenceTransformer, fit: Table, epochs: int, seed: int) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    device = torch.device(model.device)
    dimensions = model.get_embedding_dimension()
    assert dimensions is not None  # of a model that pools its tokens
    output = nn.Linear(dimensions, len(TIERS)).to(device)
    rates = [_ENCODER_RATE, _OUTPUT_RATE]
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in zip((model, output), rates, strict=True)]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    texts = [clipped(text) for text in fit.texts]
    lengths = np.array([len(text) for text in texts])
    success = torch.tensor(fit.success, dtype=torch.float32, device=device)
    weight = torch.tensor(fit.weight / fit.weight.mean(), dtype=torch.float32, device=device)
    batches = [batch for _ in range(epochs) for batch in _batches(lengths, rng)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=len(batches), pct_start=0.1)
    model.eval()  # no dropout: over so few epochs it buys nothing, and drawing it takes half the time
    for batch in tqdm(batches, desc="fine-tune the teacher", unit="batch"):
        features = batch_to_device(model.preprocess([texts[row] for row in batch]), device)
        # Per step: inside one autocast around the whole run, the weights stay as they were first cast.
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = output(model(features)["sentence_embedding"] * _SHARPNESS).float()
        seen = ~torch.isnan(success[batch])
        losses = nn.functional.binary_cross_entropy_with_logits(logits, success[batch].nan_to_num(), reduction="none")
        loss = (losses * seen * weight[batch][:, None]).sum() / seen.sum().clamp(min=1)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def _batches(lengths: Rows, rng: np.random.Generator) -> list[Rows]:
    """Row numbers in batches of texts about as long as each other, in random order."""
    order = rng.permutation(len(lengths))
    buckets = [order[start : start + _BUCKET] for start in range(0, len(order), _BUCKET)]
    by_length = np.concatenate([bucket[np.argsort(lengths[bucket], kind="stable")] for bucket in buckets])
    batches = [by_length[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
    return [batches[number] for number in rng.permutation(len(batches))]


def clipped(text: str) -> str:
    """A long text's beginning and end: the teacher cuts what is longer than it can read."""
    return text if len(text) <= HEAD_CHARS + TAIL_CHARS else f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"


def _key(teacher: Teacher, fit: Table, epochs: int, seed: int) -> str:
    digest = hashlib.sha256(f"{teacher.fingerprint} {epochs} {seed}".encode())
    digest.update("\0".join(fit.texts).encode())
    digest.update(fit.success.tobytes() + fit.weight.tobytes())
    return digest.hexdigest()[:16]
