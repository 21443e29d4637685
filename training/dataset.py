"""Labelled prompts, outcome files and the ledger -> one table of per-tier success targets."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from router_ml.errors import InputError
from router_ml.ledger import Ledger
from router_ml.text import judged_text
from router_ml.types import TIERS, Tier
from training.outcomes import read_outcomes

STEM_CHARS = 90
_NOT_ALNUM = re.compile(r"[\W_]+")
# An exam's options, from a line that announces them (or the first "A. ") to the end: users rarely write so.
_OPTIONS = re.compile(r"\n(?:Options:|A[.)] ).*\Z", re.DOTALL)

Names = NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class Table:
    """n prompts as the encoder sees them. ``success``: (n, 3), NaN where a tier was not observed; ``weight``: (n,);
    ``source``, ``task``, ``language``: (n,) names; ``labels``: (n,) tiers, "" where the row comes from outcomes."""

    texts: list[str]
    success: NDArray[np.float64]
    weight: NDArray[np.float64]
    source: Names
    labels: Names
    task: Names
    language: Names

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, mask: NDArray[np.bool_]) -> Table:
        """The rows where ``mask`` (n,) holds."""
        texts = [text for text, kept in zip(self.texts, mask, strict=True) if kept]
        return Table(texts, *(getattr(self, field.name)[mask] for field in fields(self)[1:]))

    def with_texts(self, texts: list[str]) -> Table:
        """The same rows of other texts."""
        return replace(self, texts=texts)

    @property
    def stems(self) -> list[str]:
        return [stem(text) for text in self.texts]


def stem(text: str) -> str:
    """Lower-case alphanumerics, first 90 characters: prompts that share it count as the same prompt."""
    return _NOT_ALNUM.sub("", text.lower())[:STEM_CHARS]


def join(tables: Sequence[Table]) -> Table:
    """One table of all rows."""
    columns = (np.concatenate([getattr(table, field.name) for table in tables]) for field in fields(Table)[1:])
    return Table([text for table in tables for text in table.texts], *columns)


def read_labelled(path: Path) -> tuple[Table, Table]:
    """data/prompts.jsonl -> (training rows, held-out rows). A tier's success is the share of the row's ``labels`` (by
    whoever labelled it) that it satisfies: 1 from the needed tier upwards where all agree.

    Raises:
        InputError: the file cannot be read; a malformed row, an id twice or one prompt on both sides of the split, by
            file and line.
    """
    rows: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    ids: set[str] = set()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{path} cannot be read: {exc}") from exc
    for number, line in enumerate(lines, 1):
        row = _labelled_row(line, f"{path}:{number}")
        if row["id"] in ids:
            raise InputError(f"{path}:{number}: id {row['id']!r} occurs twice")
        ids.add(row["id"])
        if seen.setdefault(stem(row["whole"]), row["split"]) != row["split"]:
            raise InputError(f"{path}:{number}: the same prompt stands in both splits")
        rows.append(row)
    if not rows:
        raise InputError(f"{path} holds no prompts")
    return _labelled_table(rows, "train"), _labelled_table(rows, "test")


def _labelled_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        prompt = row["prompt"] if "prompt" in row else row["messages"]
        tier, labels = Tier(row["tier"]), [Tier(label) for label in row.get("labels", [row["tier"]])]
        whole = prompt if isinstance(prompt, str) else "".join(str(message["content"]) for message in prompt)
        kept = {"id": row["id"], "text": judged_text(prompt), "whole": whole, "tier": tier, "labels": labels}
        kept |= {name: row[name] for name in ("task", "language", "split")}
        kept["source"] = row.get("source", "labelled")
    except (ValueError, KeyError, TypeError) as exc:
        raise InputError(
            f"{where}: {exc!r}; a row has id, prompt or messages, task, language, tier, why, split"
        ) from exc
    if kept["split"] not in ("train", "test"):
        raise InputError(f"{where}: split {kept['split']!r} is neither train nor test")
    return kept


def _labelled_table(rows: Iterable[dict[str, Any]], split: str) -> Table:
    kept = [row for row in rows if row["split"] == split]
    success = [[np.mean([tier >= label for label in row["labels"]]) for tier in TIERS] for row in kept]
    return Table(
        [row["text"] for row in kept],
        np.array(success, dtype=float).reshape(-1, len(TIERS)),
        np.ones(len(kept)),
        *(np.array([str(row[name]) for row in kept], dtype=str) for name in ("source", "tier", "task", "language")),
    )


def outcome_table(
    paths: Sequence[Path], *, exclude: Collection[str], tiers: Mapping[str, Tier] | None = None
) -> tuple[Table, list[str]]:
    """Outcome files -> a row per source and prompt with the mean score of each tier's models, and a line per file.

    Prompts whose stem is in ``exclude`` (held-out and benchmark prompts) are dropped, and an exam's options are cut
    from every other prompt, so that the format is not what is learned. All sources weigh the same, 1 a row on average.

    Raises:
        InputError: as ``read_outcomes``.
    """
    frames, lines = [], []
    for path in paths:
        frame, line = read_outcomes(path, tiers)
        frame["stem"] = frame["prompt"].map(stem)
        clean = frame[~frame["stem"].isin(list(exclude))]
        frames.append(clean)
        dropped = frame.loc[frame["stem"].isin(list(exclude)), "stem"].nunique()
        lines.append(f"{line}; {clean['stem'].nunique()} prompts kept, {dropped} dropped (held-out or benchmark stem)")
    rows = pd.concat(frames) if frames else pd.DataFrame()
    if rows.empty:
        return empty(), lines
    means = rows.pivot_table(index=["source", "stem"], columns="tier", values="score", aggfunc="mean")
    means = means.reindex(columns=[tier.value for tier in TIERS])
    first = rows.drop_duplicates(["source", "stem"]).set_index(["source", "stem"]).loc[means.index]
    source = means.index.get_level_values("source").to_numpy().astype(str)
    names, inverse, counts = np.unique(source, return_inverse=True, return_counts=True)
    weight = len(source) / (len(names) * counts[inverse])
    texts = [without_options(text) if number % 2 else text for number, text in enumerate(first["prompt"])]
    blank = np.full(len(texts), "")
    return Table(
        texts, means.to_numpy(float), weight, source, blank, first["task"].to_numpy().astype(str), blank
    ), lines


def without_options(text: str) -> str:
    """The question of an exam item, without its list of options."""
    return _OPTIONS.sub("", text) or text


def ledger_table(url: str, *, exclude: Collection[str] = ()) -> tuple[Table, list[str]]:
    """Answered requests with an outcome: the score counts for the tier that answered, the other tiers are unknown.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    ledger = Ledger(url, inspect=True)
    try:
        judged = ledger.judged()
    finally:
        ledger.close()
    rows = [row for row in judged if stem(row["prompt"]) not in exclude]
    success = np.full((len(rows), len(TIERS)), np.nan)
    for number, row in enumerate(rows):
        success[number, Tier(row["tier"]).rank] = row["score"]
    n, blank = len(rows), np.full(len(rows), "")
    line = f"ledger: {len(judged)} judged answers in, {len(judged) - n} dropped (held-out or benchmark stem)"
    texts = [row["prompt"] for row in rows]
    return Table(texts, success, np.ones(n), np.full(n, "ledger"), blank, blank, blank), [line]


def empty() -> Table:
    """A table of no rows."""
    none = np.empty(0, dtype=str)
    return Table([], np.empty((0, len(TIERS))), np.empty(0), none, none, none, none)


def stems_of(paths: Sequence[Path]) -> set[str]:
    """Stems of all prompts of benchmark files, with and without their options."""
    prompts = [prompt for path in paths for prompt in pd.read_parquet(path, columns=["prompt"])["prompt"].unique()]
    return {stem(text) for prompt in prompts for text in (prompt, without_options(prompt))}
