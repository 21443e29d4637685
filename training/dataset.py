"""Labelled prompts, outcome files and the ledger -> one table of per-tier success targets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.ledger import Ledger
from router_ml.text import judged_text
from router_ml.types import TIERS, Tier

STEM_CHARS = 90
_NOT_ALNUM = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Table:
    """n prompts as the encoder sees them. ``success``: (n, 3), NaN where a tier was not observed; ``weight``: (n,);
    ``source``: (n,) names; ``labels``: (n,) tiers, "" where the row comes from outcomes."""

    texts: list[str]
    success: NDArray[np.float64]
    weight: NDArray[np.float64]
    source: NDArray[np.str_]
    labels: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, mask: NDArray[np.bool_]) -> Table:
        """The rows where ``mask`` (n,) holds."""
        texts = [text for text, kept in zip(self.texts, mask, strict=True) if kept]
        return Table(texts, self.success[mask], self.weight[mask], self.source[mask], self.labels[mask])


def stem(text: str) -> str:
    """Lower-case alphanumerics, first 90 characters: prompts that share it count as the same prompt."""
    return _NOT_ALNUM.sub("", text.lower())[:STEM_CHARS]


def read_labelled(path: Path) -> tuple[Table, Table]:
    """data/prompts.jsonl -> (training rows, held-out rows). Success is 1 from the labelled tier upwards.

    Raises:
        InputError: a malformed row, a duplicate id or a stem on both sides of the split, named by file and line.
    """
    rows: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    ids: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        row = _labelled_row(line, f"{path}:{number}")
        if row["id"] in ids:
            raise InputError(f"{path}:{number}: id {row['id']!r} occurs twice")
        ids.add(row["id"])
        if seen.setdefault(stem(row["text"]), row["split"]) != row["split"]:
            raise InputError(f"{path}:{number}: the same prompt stands in both splits")
        rows.append(row)
    if not rows:
        raise InputError(f"{path} holds no prompts")
    return _labelled_table(rows, "train"), _labelled_table(rows, "test")


def _labelled_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        text = judged_text(row["prompt"] if "prompt" in row else row["messages"])
        tier, split = Tier(row["tier"]), row["split"]
    except (ValueError, KeyError, TypeError) as exc:
        raise InputError(
            f"{where}: {exc!r}; a row has id, prompt or messages, task, language, tier, why, split"
        ) from exc
    if split not in ("train", "test"):
        raise InputError(f"{where}: split {split!r} is neither train nor test")
    return {"id": row["id"], "text": text, "tier": tier, "split": split}


def _labelled_table(rows: Iterable[dict[str, Any]], split: str) -> Table:
    kept = [row for row in rows if row["split"] == split]
    success = np.array([[float(tier >= row["tier"]) for tier in TIERS] for row in kept]).reshape(-1, len(TIERS))
    labels = np.array([row["tier"].value for row in kept], dtype=str)
    return Table([row["text"] for row in kept], success, np.ones(len(kept)), np.full(len(kept), "labelled"), labels)


def read_outcomes(paths: Sequence[Path], *, exclude: set[str]) -> tuple[Table, list[str]]:
    """Outcome files (columns source, prompt, tier, score) -> mean score of each tier's models, and a line per source.

    Rows whose stem is in ``exclude`` (held-out and benchmark prompts) are dropped. Each source weighs the same in all.

    Raises:
        InputError: an unreadable file, a missing column or a score outside 0..1.
    """
    frames, lines = [], []
    for path in paths:
        frame = _read_frame(path)
        frame["stem"] = frame["prompt"].map(stem)
        clean = frame[~frame["stem"].isin(exclude) & frame["tier"].isin([tier.value for tier in TIERS])]
        lines.append(
            f"{path.name}: {len(frame)} rows in, {len(frame) - len(clean)} dropped (no tier, or a held-out stem)"
        )
        frames.append(clean)
    if not frames or not sum(map(len, frames)):
        return Table([], np.empty((0, 3)), np.empty(0), np.empty(0, str), np.empty(0, str)), lines
    table = pd.concat(frames).pivot_table(index=["source", "stem"], columns="tier", values="score", aggfunc="mean")
    table = table.reindex(columns=[tier.value for tier in TIERS])
    first = pd.concat(frames).drop_duplicates(["source", "stem"]).set_index(["source", "stem"])["prompt"]
    source = table.index.get_level_values("source").to_numpy().astype(str)
    names, counts = np.unique(source, return_counts=True)
    weight = 1.0 / counts[np.searchsorted(names, source)]
    texts = [judged_text(prompt) for prompt in first.loc[table.index]]
    return Table(texts, table.to_numpy(dtype=float), weight / weight.mean(), source, np.full(len(texts), "")), lines


def _read_frame(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as exc:
        raise InputError(f"{path} cannot be read as Parquet: {exc}") from exc
    missing = {"source", "prompt", "tier", "score"} - set(frame.columns)
    if missing:
        raise InputError(f"{path} lacks the columns {sorted(missing)}")
    bad = frame[~frame["score"].between(0.0, 1.0)]
    if len(bad):
        raise InputError(f"{path}: row {bad.index[0]}: score {bad['score'].iloc[0]!r} is outside 0..1")
    return frame


def read_ledger(url: str) -> Table:
    """Answered requests with an outcome: the score counts for the tier that answered, the other tiers are unknown."""
    ledger = Ledger(url, inspect=True)
    try:
        rows = ledger.judged()
    finally:
        ledger.close()
    success = np.full((len(rows), len(TIERS)), np.nan)
    for number, row in enumerate(rows):
        success[number, Tier(row["tier"]).rank] = row["score"]
    texts = [row["prompt"] for row in rows]
    return Table(texts, success, np.ones(len(rows)), np.full(len(rows), "ledger"), np.full(len(rows), ""))


def join(tables: Sequence[Table]) -> Table:
    """One table of all rows."""
    return Table(
        [text for table in tables for text in table.texts],
        np.concatenate([table.success for table in tables]),
        np.concatenate([table.weight for table in tables]),
        np.concatenate([table.source for table in tables]),
        np.concatenate([table.labels for table in tables]),
    )
