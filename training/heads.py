"""Which head? The same features and folds for all of them: python -m training.heads [--leave-source-out]

Cross-validated by stem on the training prompts of data/prompts.jsonl, or with whole sources left out, which is what
happens to a user's prompts; the held-out ones are never looked at. The lexicon is fitted anew in every fold, on the
teacher as it comes (not fine-tuned), and every head is calibrated per tier on prompts that it was not fitted on. A head
is within noise of the best where the paired 95 % interval of the difference in kappa holds 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from router_ml.classifier import forward
from router_ml.encoder import Vectors
from router_ml.errors import InputError, RouterError
from router_ml.types import TIERS
from training.dataset import Names, Table, read_labelled
from training.distill import Teacher, packaged
from training.encoder import ALPHA, DIMENSIONS, train_encoder
from training.evaluate import chosen, ranks
from training.fit import HIDDEN, MEMBERS, PENALTY, fit_head, platt
from training.metrics import Array, bootstrap, ece, kappa, tier_metrics

Predict = Callable[[Vectors], Array]
Fit = Callable[[Vectors, Array, int], Predict]
"""(features (n, f), success (n, 3), seed) -> features (m, f) -> an output per tier (m, 3), the higher the likelier"""

CALIBRATION_SHARE = 7  # one in so many prompts of a fold's training part


@dataclass(frozen=True, slots=True)
class Result:
    """A head's figures over all folds, and its kappa on each source. ``behind``: the interval of the best head's kappa
    less this one's."""

    figures: dict[str, float]
    by_source: dict[str, float]
    interval: tuple[float, float]
    ece: float
    behind: tuple[float, float]
    fit_s: float


def ridge(x: Vectors, success: Array, seed: int) -> Predict:  # noqa: ARG001 - every head takes a seed
    return Ridge(alpha=100.0).fit(x, success).predict  # type: ignore[no-any-return]


def logistic(x: Vectors, success: Array, seed: int) -> Predict:
    """Of the label: P(simple is enough), P(complex is enough); premium always is."""
    label = (success < 0.5).sum(axis=1)
    model = LogisticRegression(C=0.03, max_iter=2_000, random_state=seed).fit(x, label)
    return lambda z: np.cumsum(model.predict_proba(z), axis=1)


def nystroem(x: Vectors, success: Array, seed: int) -> Predict:
    kernel = Nystroem(gamma=0.3 / x.shape[1], n_components=min(1_000, len(x)), random_state=seed)
    return make_pipeline(kernel, Ridge(alpha=0.3)).fit(x, success).predict  # type: ignore[no-any-return]


def boosting(x: Vectors, success: Array, seed: int) -> Predict:
    trees = HistGradientBoostingRegressor(max_iter=250, learning_rate=0.06, random_state=seed)
    return MultiOutputRegressor(trees).fit(x, success).predict  # type: ignore[no-any-return]


def neighbours(x: Vectors, success: Array, seed: int) -> Predict:  # noqa: ARG001 - every head takes a seed
    return KNeighborsRegressor(min(25, len(x)), weights="distance").fit(x, success).predict  # type: ignore[no-any-return]


def network(members: int) -> Fit:
    """``training.fit.fit_head`` with the settings of ``training.retrain``."""

    def fit(x: Vectors, success: Array, seed: int) -> Predict:
        layers = fit_head(x, success, np.ones(len(x)), hidden=HIDDEN, alpha=PENALTY, members=members, seed=seed)
        return lambda z: forward(z, layers).astype(np.float64)

    return fit


def item_response(difficulty: Fit) -> Fit:
    """One difficulty a prompt, by any head, and one ability a tier: logit P(tier succeeds) = a (ability - difficulty),
    a and the abilities by the calibration per tier (the two-parameter form, Birnbaum 1968, with tiers as persons)."""

    def fit(x: Vectors, success: Array, seed: int) -> Predict:
        easy = np.repeat(success.mean(axis=1, keepdims=True), len(TIERS), axis=1)
        predict = difficulty(x, easy, seed)
        return lambda z: np.repeat(predict(z).mean(axis=1, keepdims=True), len(TIERS), axis=1)

    return fit


# From the simplest to the least simple: the first within noise of the best is the one to keep.
HEADS: Mapping[str, Fit] = {
    "item response, ridge": item_response(ridge),
    "ridge": ridge,
    "logistic": logistic,
    "item response, network": item_response(network(1)),
    "network": network(1),
    "Nystroem + ridge": nystroem,
    f"{MEMBERS} networks": network(MEMBERS),
    "gradient boosting": boosting,
    "kNN": neighbours,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 where the prompts or the teacher cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m training.heads", description=__doc__)
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts.jsonl"))
    parser.add_argument("--teacher", default=packaged(), help="sentence-transformers model name or folder")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder of the embedding cache")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--leave-source-out", action="store_true", help="a fold is a source")
    parser.add_argument("--heads", nargs="*", choices=HEADS, default=list(HEADS), help="some of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    try:
        table, _ = read_labelled(args.prompts)
        heads = {name: HEADS[name] for name in args.heads}
        groups = table.source if args.leave_source_out else np.array(table.stems)
        results = compare(table, groups, heads, Teacher(args.teacher, args.cache), folds=args.folds, seed=args.seed)
    except RouterError as exc:
        print(f"heads: {exc}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({name: _plain(result) for name, result in results.items()}, indent=1))
    else:
        print(markdown(results))
    return 0


def compare(
    table: Table, groups: Names, heads: Mapping[str, Fit], teacher: Teacher, *, folds: int, seed: int
) -> dict[str, Result]:
    """Every head on every fold of the labelled ``table``; no group (n,) is in two folds. Raises InputError where there
    are less than two groups."""
    folds = min(folds, len(set(groups)))
    if folds < 2:
        raise InputError(f"only the source {str(groups[0])!r}: nothing to leave out")
    success = {name: np.empty(table.success.shape) for name in heads}
    seconds = dict.fromkeys(heads, 0.0)
    for kept, left_out in GroupKFold(folds, shuffle=True, random_state=seed).split(groups, groups=groups):
        held = np.arange(len(kept)) % CALIBRATION_SHARE == 0
        fit, middle, last = (_rows(table, rows) for rows in (kept[~held], kept[held], left_out))
        encoder, _, _, x = train_encoder(teacher, fit, fit.stems, dimensions=DIMENSIONS, alpha=ALPHA, seed=seed)
        x_middle, x_last = encoder.encode(middle.texts), encoder.encode(last.texts)
        for name, head in tqdm(heads.items(), desc="heads", unit="head"):
            started = time.perf_counter()
            with threadpool_limits(1):
                predict = head(x, fit.success, seed)
            seconds[name] += (time.perf_counter() - started) / folds
            success[name][left_out] = calibrated(predict(x_middle), middle.success, predict(x_last))
    needed = ranks(table.labels)
    theirs = {name: chosen(found) for name, found in success.items()}
    best = max(theirs, key=lambda name: kappa(needed, theirs[name]))

    def of(name: str) -> Result:
        mine = theirs[name]
        return Result(
            tier_metrics(needed, mine),
            {str(of): kappa(needed[table.source == of], mine[table.source == of]) for of in np.unique(table.source)},
            bootstrap(lambda rows: kappa(needed[rows], mine[rows]), len(needed), seed=seed),
            float(np.mean([ece(success[name][:, rank], table.success[:, rank]) for rank in range(len(TIERS))])),
            bootstrap(
                lambda rows: kappa(needed[rows], theirs[best][rows]) - kappa(needed[rows], mine[rows]),
                len(needed),
                seed=seed,
            ),
            seconds[name],
        )

    return {name: of(name) for name in heads}


def calibrated(outputs: Array, happened: Array, others: Array) -> Array:
    """P(acceptable | tier) (m, 3) of ``others`` (m, 3), by Platt scaling per tier of ``outputs`` to ``happened``; no
    smaller for a stronger tier."""
    columns = []
    for rank in range(len(TIERS)):
        slope, shift = platt(outputs[:, rank], happened[:, rank])
        columns.append(expit(slope * others[:, rank] + shift))
    return np.maximum.accumulate(np.stack(columns, axis=1), axis=1)


def simplest(results: Mapping[str, Result]) -> str:
    """The first head, in the order of ``HEADS``, whose interval to the best holds 0."""
    return next(name for name, result in results.items() if result.behind[0] <= 0)


def markdown(results: Mapping[str, Result]) -> str:
    """A row a head, and which one to keep."""
    lines = [
        "| head | kappa | by source | macro-F1 | catastrophic | ECE | the best is ahead by | fit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        figures, (low, high), (less, more) = result.figures, result.interval, result.behind
        parts = ", ".join(f"{source} {value:.3f}" for source, value in result.by_source.items())
        lines.append(
            f"| {name} | {figures['qwk']:.3f} ({low:.3f} to {high:.3f}) | {parts} | {figures['macro_f1']:.3f} "
            f"| {figures['catastrophic']:.1%} | {result.ece:.3f} | {less:.3f} to {more:.3f} | {result.fit_s:.1f} s |"
        )
    return "\n".join([*lines, "", f"The simplest within noise of the best: {simplest(results)}."])


def _rows(table: Table, rows: Any) -> Table:
    mask = np.zeros(len(table), dtype=bool)
    mask[rows] = True
    return table.rows(mask)


def _plain(result: Result) -> dict[str, Any]:
    return {name: getattr(result, name) for name in Result.__slots__}


if __name__ == "__main__":
    sys.exit(main())
