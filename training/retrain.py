"""The command: read, distil, fit, calibrate, evaluate on held-out prompts, then write the artefact or refuse.

python -m training.retrain [--outcomes FILE ...] [--exclude FILE ...] [--ledger URL] [--head-only]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from router_ml import registry
from router_ml.catalog import Catalog
from router_ml.classifier import ComplexityClassifier, Layer, forward, success_of
from router_ml.encoder import LEXICAL, StaticEncoder
from router_ml.errors import ArtefactError, InputError, RouterError
from router_ml.familiarity import Familiarity
from router_ml.tokenizer import WordPieceTokenizer
from router_ml.types import TIERS
from training import card
from training.courtesy import polite
from training.dataset import Table, join, ledger_table, outcome_table, read_labelled, stems_of
from training.distill import Teacher, packaged
from training.encoder import ALPHA, DIMENSIONS, train_encoder, unseen
from training.evaluate import Report, answer_costs, baselines, chosen, evaluate, ranks
from training.fit import HIDDEN, MEMBERS, PENALTY, calibrate, centres, fit_head
from training.metrics import Array, tier_metrics
from training.outcomes import read_tiers

MAX_ONE_TIER = 0.95
QWK_SLACK = 0.02
MIN_PROMPTS = 30  # labelled ones to fit; below it nothing can be learned that holds


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: written; 1: refused, or bad input; the artefact in place is untouched then."""
    args = _arguments(argv)
    try:
        report, text = retrain(args)
    except RouterError as exc:
        print(f"refused: {exc}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(report), indent=1) if args.json else text)
    return 0


def retrain(args: argparse.Namespace) -> tuple[Report, str]:
    """Train and write; the report and the model card. Raises RouterError where input is bad or the candidate is
    refused."""
    started = time.monotonic()
    fit, held, test, lines = read(args)
    copies, originals = polite(fit, seed=args.seed)
    stems = fit.stems
    groups = [*stems, *(stems[row] for row in originals)]
    teacher = Teacher(args.teacher, args.cache)
    written, fit = fit, join([fit, copies])
    if args.head_only:
        encoder, tensors, tokenizer = _current_encoder(args.out)
        x = unseen(encoder, fit, groups, alpha=args.alpha, seed=args.seed)
    else:
        tuned = _tuned(teacher, written, args)
        encoder, tensors, tokenizer, x = train_encoder(
            tuned, fit, groups, dimensions=args.dimensions, alpha=args.alpha, seed=args.seed
        )
    labelled = fit.labels != ""
    x_held, x_test = encoder.encode(held.texts), encoder.encode(test.texts)
    middles, distances = centres(x[labelled, LEXICAL:], x_held[:, LEXICAL:], seed=args.seed)
    familiar = Familiarity(middles, distances, held.success.mean(axis=0))

    def head(seed: int) -> tuple[list[Layer], Array]:
        layers = fit_head(
            x, fit.success, fit.weight, hidden=args.hidden, alpha=args.penalty, members=args.members, seed=seed
        )
        layers = calibrate(layers, x_held, held.success)
        return layers, familiar.drawn(success_of(forward(x_test, layers)), familiar.of(x_test))

    layers, success = head(args.seed)
    costs = answer_costs(Catalog.load(), encoder.tokenizer, test)
    plain = np.arange(len(fit)) < len(groups) - len(originals)
    others = baselines(join([fit.rows(labelled & plain), held]), test, teacher.encode, seed=args.seed)
    reseeded = [head(args.seed + number * args.members)[1] for number in range(1, args.seeds)]
    report = evaluate(success, test, costs, others, seed=args.seed, reseeded=reseeded)
    tensors_of_head = _head(layers, held, success_of(forward(x_held, layers)), encoder)
    tensors_of_head |= {"familiarity.centres": middles, "familiarity.distances": distances}
    facts = {
        "name": "router_ml default",
        "version": _digest(tensors, tensors_of_head, tokenizer),
        "teacher": {"name": teacher.name, "sha256": teacher.fingerprint},
        "settings": {
            name: getattr(args, name)
            for name in ("seed", "finetune", "dimensions", "alpha", "hidden", "penalty", "members")
        },
        "training_data": lines,
        "held_out": asdict(report),
    }
    if not args.force:
        _gate(report, args.out, test)
    text = card.markdown(facts, report)
    registry.write(args.out, card=facts, encoder=tensors, head=tensors_of_head, tokenizer=tokenizer, readme=text)
    print(f"trained in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return report, text


def read(args: argparse.Namespace) -> tuple[Table, Table, Table, list[str]]:
    """Rows to fit, to calibrate and to hold out, and a line per source. Raises InputError where there is too little."""
    train, test = read_labelled(args.prompts)
    held_rows = np.array([int(hashlib.sha256(f"cal{stem}".encode()).hexdigest(), 16) % 7 == 0 for stem in train.stems])
    fit, held = train.rows(~held_rows), train.rows(held_rows)
    line = f"{args.prompts.name}: {len(fit)} labelled prompts to fit, {len(held)} to calibrate, {len(test)} held out"
    if len(fit) < MIN_PROMPTS or min(len(held), len(test)) < len(TIERS):
        raise InputError(f"too few prompts to train on ({line}); at least {MIN_PROMPTS} to fit are needed")
    for tier in TIERS:
        if not (fit.labels == tier.value).any():
            raise InputError(f"no labelled prompt to fit needs tier {tier}: its border cannot be learned")
    exclude = {*test.stems, *held.stems, *stems_of(args.exclude)}
    tiers = read_tiers(args.tiers) if args.tiers else None
    outcomes, lines = outcome_table(args.outcomes, exclude=exclude, tiers=tiers)
    judged, judged_lines = (
        ledger_table(args.ledger, exclude=exclude)
        if args.ledger
        else (outcomes.rows(np.zeros(len(outcomes), bool)), [])
    )
    for table, share in ((outcomes, args.outcome_weight), (judged, args.ledger_weight)):
        if len(table):
            table.weight[:] *= share * len(fit) / table.weight.sum()
    lines = [line, *lines, *judged_lines]
    print(*lines, sep="\n", file=sys.stderr)
    return join([fit, outcomes, judged]), held, test, lines


def _tuned(teacher: Teacher, fit: Table, args: argparse.Namespace) -> Teacher:
    if not args.finetune:
        return teacher
    from training.finetune import finetuned

    return finetuned(teacher, fit, epochs=args.finetune, seed=args.seed, cache=args.cache)


def _current_encoder(path: Path) -> tuple[StaticEncoder, dict[str, Any], bytes]:
    artefact = registry.read(path)
    tokenizer = WordPieceTokenizer.from_json(artefact.tokenizer)
    return StaticEncoder.from_tensors(tokenizer, artefact.encoder), dict(artefact.encoder), artefact.tokenizer


def _head(layers: Sequence[Layer], held: Table, success: Any, encoder: StaticEncoder) -> dict[str, Any]:
    """The head's tensors by name, with what the policy is solved on."""
    tokens = [len(encoder.tokenizer.encode(text)) for text in held.texts]
    return {
        **{
            f"layer{number}.{name}": part
            for number, layer in enumerate(layers)
            for name, part in zip(("weight", "bias"), layer, strict=True)
        },
        "calibration.success": success,
        "calibration.quality": held.success,
        "calibration.input_tokens": np.array(tokens, dtype=np.float64),
    }


def _digest(encoder: dict[str, Any], head: dict[str, Any], tokenizer: bytes) -> str:
    digest = hashlib.sha256(tokenizer)
    for name, tensor in sorted({**encoder, **head}.items()):
        digest.update(name.encode() + tensor.tobytes())
    return digest.hexdigest()[:12]


def _gate(report: Report, out: Path, test: Table) -> None:
    """Raises ArtefactError where the candidate sends nearly all to one tier, or is worse than what is in place."""
    shares = np.array(report.confusion).sum(axis=0) / report.prompts
    if shares.max() > MAX_ONE_TIER:
        raise ArtefactError(
            f"the candidate sends {shares.max():.1%} of held-out prompts to one tier (at most {MAX_ONE_TIER:.0%})"
        )
    if not (out / registry.CARD).exists():
        return
    try:
        current = ComplexityClassifier.load(out)
    except ArtefactError as exc:
        print(f"the artefact in place cannot be compared with: {exc}", file=sys.stderr)
        return
    qwk = tier_metrics(ranks(test.labels), chosen(current.predict_success(test.texts)))["qwk"]
    if report.figures["qwk"] < qwk - QWK_SLACK:
        raise ArtefactError(
            f"the candidate's kappa {report.figures['qwk']:.3f} is below {qwk:.3f}, that of {out}; --force overrides"
        )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.retrain", description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--prompts", type=Path, default=Path("data/prompts.jsonl"), help="labelled prompts (JSONL)")
    data.add_argument(
        "--outcomes", type=Path, nargs="*", default=[], help="outcome files (Parquet, CSV, JSONL, datasets folder)"
    )
    data.add_argument("--tiers", type=Path, help='TOML map of models to tiers: "model" = "tier"')
    data.add_argument(
        "--exclude", type=Path, nargs="*", default=[], help="benchmark files (Parquet) whose prompts to drop"
    )
    data.add_argument("--ledger", help="SQLAlchemy URL of a ledger to learn from")
    data.add_argument("--outcome-weight", type=float, default=0.3, help="all outcomes against all labelled prompts")
    data.add_argument("--ledger-weight", type=float, default=1.0, help="the ledger against all labelled prompts")
    parser.add_argument("--out", type=Path, default=Path("models/default"), help="folder of the artefact")
    parser.add_argument("--teacher", default=packaged(), help="sentence-transformers model name or folder")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder of the embedding cache")
    parser.add_argument("--head-only", action="store_true", help="keep the encoder in place and refit the head alone")
    parser.add_argument("--finetune", type=int, default=2, help="epochs of fine-tuning the teacher (0: none)")
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS, help="of the token vectors")
    parser.add_argument("--alpha", type=float, default=ALPHA, help="ridge penalty of the lexicon")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="hidden units of a member of the head")
    parser.add_argument("--penalty", type=float, default=PENALTY, help="L2 penalty of the head")
    parser.add_argument("--members", type=int, default=MEMBERS, help="networks averaged in the head")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seeds", type=int, default=5, help="heads to fit from other seeds for the report, this one too"
    )
    parser.add_argument("--force", action="store_true", help="write even a worse candidate")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
