"""RouteLLM's benchmark: how well a score of a prompt says that the strong model is worth calling.

python -m training.benchmark --routellm benchmark_routellm.parquet [--outcomes FILE ...] [--arms NAME ...]

The answers of GPT-4-1106 and Mixtral-8x7B to MT-Bench, MMLU and GSM8K, as graded by RouteLLM (arXiv 2406.18665).
Nothing of it is trained on: ``training.retrain --exclude`` drops its prompts. MT-Bench is decided on the first turn and
scored by the mean of both, 80 items. Other people's routers stand beside ours where their packages are installed
(``training/rivals.py``), and those that are not are named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from router_ml.classifier import ComplexityClassifier
from router_ml.errors import InputError, RouterError
from training.metrics import Array, apgr, bootstrap, cpt
from training.rivals import RIVALS, Materials, Scorer, make_arms

# The best of RouteLLM's published routers on each set: (CPT50, CPT80, APGR).
PUBLISHED = {
    "MT-Bench": (0.134, 0.313, 0.802),
    "MMLU": (0.354, 0.716, 0.603),
    "GSM8K": (0.336, 0.633, 0.622),
}
OURS = ("router_ml", "length")
_MODELS = ("weak", "strong")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 where a file or the artefact cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m training.benchmark", description=__doc__)
    parser.add_argument("--routellm", type=Path, required=True, help="benchmark_routellm.parquet")
    parser.add_argument("--artefact", type=Path, help="the classifier's folder (default: the packaged one)")
    parser.add_argument("--arms", nargs="+", choices=[*OURS, *RIVALS], help="these alone (default: all there are)")
    parser.add_argument("--outcomes", type=Path, nargs="+", default=[], help="outcome files, for arms that are trained")
    parser.add_argument(
        "--prompts", type=Path, default=Path("data/prompts.jsonl"), help="labelled, for example prompts"
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder of the embedding cache")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    try:
        sets = read_routellm(args.routellm)
        ours = arms(ComplexityClassifier.load(args.artefact))
        theirs, absent = make_arms(
            args.arms, Materials(args.routellm, args.outcomes, args.prompts, args.cache, args.seed)
        )
        scorers = {name: arm for name, arm in (ours | theirs).items() if not args.arms or name in args.arms}
        results = run(sets, scorers, seed=args.seed)
    except RouterError as exc:
        print(f"benchmark: {exc}", file=sys.stderr)
        return 1
    print(json.dumps(results | {"absent": absent}, indent=2) if args.json else markdown(results, absent))
    return 0


def read_routellm(path: Path) -> dict[str, tuple[list[str], Array]]:
    """Each set's prompts and the quality (n, 2) of the weak and the strong model's answers.

    Raises:
        InputError: not that file.
    """
    try:
        frame = pd.read_parquet(path)
        frame["set"] = frame["task"].map(_set_of)
        frame["item"] = frame["prompt_id"].str.split("#").str[0].where(frame["set"] == "MT-Bench", frame["prompt_id"])
        quality = frame.pivot_table(index=["set", "item"], columns="tier", values="score", aggfunc="mean")
        turn = frame["task"].str.contains("turn2")
        first = frame[~turn].drop_duplicates(["set", "item"]).set_index(["set", "item"])["prompt"]
        return {
            name: (first.loc[name].loc[part.index].tolist(), part[list(_MODELS)].to_numpy(float))
            for name in PUBLISHED
            for part in [quality.loc[name]]
        }
    except (OSError, ValueError, KeyError) as exc:
        raise InputError(f"{path} is not RouteLLM's benchmark as this command knows it: {exc}") from exc


def _set_of(task: str) -> str:
    return "MT-Bench" if task.startswith("mt_bench") else "GSM8K" if task == "gsm8k" else "MMLU"


def gain(classifier: ComplexityClassifier) -> Scorer:
    """What a strong model is expected to add: P(acceptable | premium) - P(acceptable | simple)."""

    def score(prompts: list[str]) -> Array:
        success = classifier.predict_success(prompts)
        added: Array = success[:, -1] - success[:, 0]
        return added

    return score


def arms(classifier: ComplexityClassifier) -> dict[str, Scorer]:
    """Ours, and the prompt's length."""
    return {
        "router_ml": gain(classifier),
        "length": lambda prompts: np.array([float(len(prompt)) for prompt in prompts]),
    }


def run(sets: dict[str, tuple[list[str], Array]], scorers: dict[str, Scorer], *, seed: int) -> dict[str, Any]:
    """APGR with its 95 % interval, CPT50 and CPT80 of every arm on every set."""
    results: dict[str, Any] = {}
    for name, (prompts, quality) in sets.items():
        results[name] = {"prompts": len(prompts), "published": dict(zip(_FIGURES, PUBLISHED[name], strict=True))}
        for arm, scorer in scorers.items():
            score = scorer(prompts)
            low, high = bootstrap(
                lambda rows, s=score, q=quality: apgr(s[rows], q[rows]),  # type: ignore[misc]
                len(prompts),
                seed=seed,
                rounds=200,
            )
            figures = (cpt(score, quality, 0.5), cpt(score, quality, 0.8), apgr(score, quality))
            results[name][arm] = {**dict(zip(_FIGURES, figures, strict=True)), "apgr_interval": (low, high)}
    return results


_FIGURES = ("cpt50", "cpt80", "apgr")


def markdown(results: dict[str, Any], absent: Mapping[str, str]) -> str:
    """A table, a row per set and arm, and a line for each arm that is absent, with the reason."""
    lines = ["| set | router | CPT50 | CPT80 | APGR | 95 % interval |", "|---|---|---|---|---|---|"]
    for name, rows in results.items():
        for arm, row in rows.items():
            if arm == "prompts":
                continue
            low, high = row.get("apgr_interval", (None, None))
            interval = f"{low:.3f} to {high:.3f}" if low is not None else ""
            lines.append(
                f"| {name} ({rows['prompts']}) | {arm} | {row['cpt50']:.1%} | {row['cpt80']:.1%} "
                f"| {row['apgr']:.3f} | {interval} |"
            )
    return "\n".join([*lines, *([""] if absent else []), *(f"{name}: {reason}" for name, reason in absent.items())])


if __name__ == "__main__":
    sys.exit(main())
