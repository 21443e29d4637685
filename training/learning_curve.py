"""What outcomes of one's own buy: APGR on a source that was left out, after some of its outcomes are learned from.

python -m training.learning_curve --outcomes FILE ... [--exclude FILE ...]

For every source: the head is fitted on the labelled prompts and the other sources, and scored on half of the left-out
source's prompts (simple against premium models); then again with 250, 1,000 and 4,000 prompts of the other half. The
encoder stays as it is, so each step is the retraining a user would do every month.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from router_ml import registry
from router_ml.classifier import Layer, forward
from router_ml.encoder import StaticEncoder, Vectors
from router_ml.errors import RouterError
from router_ml.tokenizer import WordPieceTokenizer
from router_ml.types import Tier
from training.dataset import Table, join, outcome_table, read_labelled, stems_of
from training.encoder import ALPHA, unseen
from training.fit import HIDDEN, PENALTY, fit_head
from training.metrics import Array, apgr, bootstrap

SIZES = (0, 250, 1_000, 4_000)
_OTHERS_WEIGHT, _OWN_WEIGHT = 0.3, 1.0  # of all labelled prompts


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 where a file cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m training.learning_curve", description=__doc__)
    parser.add_argument("--outcomes", type=Path, nargs="+", required=True, help="outcome files")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="benchmark files whose prompts to drop")
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts.jsonl"))
    parser.add_argument("--artefact", type=Path, default=registry.default_path())
    parser.add_argument("--members", type=int, default=2, help="networks averaged in the head")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(argv)
    try:
        curves = learning_curves(args)
    except RouterError as exc:
        print(f"refused: {exc}", file=sys.stderr)
        return 1
    if args.out:
        args.out.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    print(markdown(curves))
    return 0


def learning_curves(args: argparse.Namespace) -> dict[str, Any]:
    """Of each source, by the number of its own prompts learned from: APGR, its interval, seconds to retrain."""
    artefact = registry.read(args.artefact)
    encoder = StaticEncoder.from_tensors(WordPieceTokenizer.from_json(artefact.tokenizer), artefact.encoder)
    labelled, _ = read_labelled(args.prompts)
    outcomes, _ = outcome_table(args.outcomes, exclude=stems_of(args.exclude))
    table = join([labelled, outcomes])
    x = np.vstack(
        [unseen(encoder, labelled, labelled.stems, alpha=ALPHA, seed=args.seed), encoder.encode(outcomes.texts)]
    )
    rng = np.random.default_rng(args.seed)
    curves: dict[str, Any] = {}
    for source in sorted(set(outcomes.source)):
        rows = rng.permutation(np.flatnonzero(table.source == source))
        own, held = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        held = held[~np.isnan(table.success[held][:, [0, -1]]).any(axis=1)]
        steps = {}
        for size in (size for size in SIZES if size == 0 or size <= len(own)):
            started = time.monotonic()
            weight = _weights(table, source, own[:size])
            kept = np.flatnonzero(weight > 0)
            layers = fit_head(
                x[kept],
                table.success[kept],
                weight[kept],
                hidden=HIDDEN,
                alpha=PENALTY,
                members=args.members,
                seed=args.seed,
            )
            seconds = time.monotonic() - started
            steps[str(size)] = {**_scored(layers, x[held], table.success[held], args.seed), "seconds": seconds}
        curves[source] = {"held_out": len(held), "steps": steps}
    return curves


def _weights(table: Table, source: str, own: Any) -> Array:
    """1 a labelled prompt; the other sources together and the own prompts together a share of that."""
    labelled = table.labels != ""
    others = ~labelled & (table.source != source)
    weight: Array = labelled.astype(float)
    weight[others] = table.weight[others] * _OTHERS_WEIGHT * labelled.sum() / table.weight[others].sum()
    weight[own] = min(1.0, _OWN_WEIGHT * labelled.sum() / max(1, len(own)))
    return weight


def _scored(layers: Sequence[Layer], x: Vectors, success: Array, seed: int) -> dict[str, Any]:
    output = forward(x, layers)
    gain = (output[:, Tier.PREMIUM.rank] - output[:, Tier.SIMPLE.rank]).astype(np.float64)
    quality = success[:, [Tier.SIMPLE.rank, Tier.PREMIUM.rank]]
    interval = bootstrap(lambda rows: apgr(gain[rows], quality[rows]), len(gain), seed=seed, rounds=200)
    return {"apgr": apgr(gain, quality), "interval": interval}


def markdown(curves: dict[str, Any]) -> str:
    """A row a source, a column a number of own prompts."""
    sizes = [str(size) for size in SIZES]
    lines = ["| source (held out) | " + " | ".join(f"{size} own" for size in sizes) + " |", "|---" * 5 + "|"]
    for source, curve in curves.items():
        cells = []
        for size in sizes:
            step = curve["steps"].get(size)
            low, high = step["interval"] if step else (0, 0)
            cells.append(f"{step['apgr']:.3f} ({low:.3f} to {high:.3f}), {step['seconds']:.0f} s" if step else "")
        lines.append(f"| {source} ({curve['held_out']}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
