"""Outcome files in the forms people have them -> one long frame: source, task, prompt, tier, score.

Read by ending: Parquet, CSV, JSON lines, or a folder that Hugging Face ``datasets`` (extra ``hub``) saved to disk: a
Dataset, or all splits of a DatasetDict. Long form has a row per prompt and model (``prompt``, ``score``, and ``tier``
or ``model``); wide form, as RouterBench's, a row per prompt with a score column per model. A map of models to tiers
says what ``model`` or the score columns stand for.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from router_ml.errors import InputError
from router_ml.text import Prompt, judged_text
from router_ml.types import TIERS, Tier

COLUMNS = ("source", "task", "prompt", "tier", "score")
_NAMED = 5  # malformed rows named in an error; the rest is counted
_HEADER_LINES = {".csv": 2, ".jsonl": 1, ".ndjson": 1}


def read_outcomes(path: Path, tiers: Mapping[str, Tier] | None = None) -> tuple[pd.DataFrame, str]:
    """The file's rows in long form, and a sentence on what came in and what was left out.

    Rows of a model without tier (null, or absent from ``tiers``) are left out and counted; anything malformed is an
    error, so that nothing vanishes unseen.

    Raises:
        InputError: an unreadable file, a missing column, or malformed rows, by file and line.
    """
    frame = _read(path)
    rows = len(frame)
    if "prompt" not in frame:
        raise InputError(f"{path} has no column 'prompt'; its columns are {', '.join(map(str, frame.columns))}")
    frame["line"] = range(_HEADER_LINES.get(path.suffix, 1), rows + _HEADER_LINES.get(path.suffix, 1))
    long = _melted(frame, path, tiers) if "score" not in frame else _tiered(frame, path, tiers)
    for column, default in (("source", path.stem), ("task", "")):
        long[column] = long[column].fillna(default).astype(str) if column in long else default
    _refuse_malformed(long, path)
    kept = long[long["tier"].notna()].copy()
    kept["prompt"] = [judged_text(_prompt(prompt)) for prompt in kept["prompt"]]
    left_out = f", {len(long) - len(kept)} left out (a model without tier)" if len(long) > len(kept) else ""
    return kept[list(COLUMNS)].reset_index(drop=True), f"{path.name}: {rows} rows in{left_out}"


def read_tiers(path: Path) -> dict[str, Tier]:
    """A TOML file of ``"model" = "tier"`` lines. Raises InputError, with the value, for anything else."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise InputError(f"{path} cannot be read as TOML: {exc}") from exc
    for model, tier in table.items():
        if tier not in list(TIERS):
            raise InputError(f"{path}: {model!r} = {tier!r}: a tier is one of {', '.join(TIERS)}")
    return {model: Tier(tier) for model, tier in table.items()}


def _read(path: Path) -> pd.DataFrame:
    try:
        if path.is_dir():
            return _saved(path)
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".csv":
            return pd.read_csv(path)
        if path.suffix in (".jsonl", ".ndjson"):
            return pd.DataFrame(_json_lines(path))
    except ImportError as exc:
        raise InputError(
            f"{path} is a folder: reading it needs the package {exc.name!r} (pip install 'router-ml[hub]')"
        ) from exc
    except (OSError, ValueError, KeyError) as exc:
        raise InputError(f"{path} cannot be read: {exc}") from exc
    raise InputError(f"{path}: outcome files end in .parquet, .csv or .jsonl, or are folders of Hugging Face datasets")


def _saved(folder: Path) -> pd.DataFrame:
    """A saved Dataset, or all splits of a saved DatasetDict, with class labels as the names they stand for."""
    from datasets import ClassLabel, DatasetDict, load_from_disk

    loaded = load_from_disk(str(folder))
    splits = dict(loaded) if isinstance(loaded, DatasetDict) else {"": loaded}
    columns = dict.fromkeys(name for split in splits.values() for name in split.column_names)
    frames = []
    for name, split in splits.items():
        if lacking := [column for column in columns if column not in split.column_names]:
            raise InputError(f"{folder / name} has no column {lacking[0]!r}, which other splits have")
        frame = split.to_pandas()
        for column, feature in split.features.items():
            if isinstance(feature, ClassLabel):
                frame[column] = frame[column].map(dict(enumerate(feature.names)))
        frames.append(frame)
    joined: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return joined


def _json_lines(path: Path) -> Iterator[dict[str, object]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as exc:
            raise InputError(f"{path}:{number} is not JSON: {exc}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number} is no JSON object but {type(row).__name__}")
        yield row


def _tiered(frame: pd.DataFrame, path: Path, tiers: Mapping[str, Tier] | None) -> pd.DataFrame:
    if tiers is not None and "model" in frame:
        return frame.assign(tier=frame["model"].map({model: tier.value for model, tier in tiers.items()}))
    if "tier" not in frame:
        raise InputError(f"{path} has no column 'tier'; with a column 'model', pass a map of models to tiers")
    return frame


def _melted(frame: pd.DataFrame, path: Path, tiers: Mapping[str, Tier] | None) -> pd.DataFrame:
    """Wide to long: a row per prompt and model column that the map names."""
    models = [column for column in frame.columns if tiers and column in tiers]
    if not tiers or not models:
        raise InputError(
            f"{path} has no column 'score'; of a wide table, a map of models to tiers must name score columns"
        )
    names = {"eval_name": "task"}  # RouterBench's name for it
    kept = [column for column in ("source", "task", "eval_name") if column in frame]
    long = frame.melt(["prompt", "line", *kept], models, "model", "score").rename(columns=names)
    return long.assign(tier=long["model"].map({model: tier.value for model, tier in tiers.items()}))


def _refuse_malformed(frame: pd.DataFrame, path: Path) -> None:
    score = pd.to_numeric(frame["score"], errors="coerce")
    flaws = {
        "score outside 0..1": ~score.between(0.0, 1.0),
        "no prompt": frame["prompt"].isna() | frame["prompt"].astype(str).str.strip().eq(""),
        "unknown tier": frame["tier"].notna() & ~frame["tier"].isin([tier.value for tier in TIERS]),
    }
    for flaw, bad in flaws.items():
        if bad.any():
            column = "score" if "score" in flaw else "tier" if "tier" in flaw else "prompt"
            shown = ", ".join(
                f"{path}:{row.line} ({column} = {str(getattr(row, column))[:40]!r})"
                for row in frame[bad].head(_NAMED).itertuples()
            )
            raise InputError(f"{flaw} in {int(bad.sum())} rows: {shown}")
    frame["score"] = score.astype(float)


def _prompt(prompt: Any) -> Prompt:
    """Messages may come as an array of mappings or as its JSON text."""
    if not isinstance(prompt, str):
        return list(prompt) if hasattr(prompt, "__iter__") else str(prompt)
    if prompt.lstrip().startswith('[{"') and '"role"' in prompt:
        try:
            messages: list[Any] = json.loads(prompt)
            return messages
        except ValueError:
            return prompt
    return prompt
