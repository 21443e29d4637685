"""Outcomes as Hugging Face datasets saves them: the real package, on disk."""

from pathlib import Path
from typing import Any

import pytest

from router_ml.errors import InputError
from router_ml.types import Tier
from training.dataset import outcome_table
from training.outcomes import read_outcomes

datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'router-ml[hub]'")

LONG = {"prompt": ["one", "one", "two"], "model": ["small", "big", "other"], "score": [0.0, 1.0, 0.5]}
TIERS = {"small": Tier.SIMPLE, "big": Tier.PREMIUM}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


def saved(table: Any, folder: Path) -> Path:
    table.save_to_disk(str(folder))
    return folder


def rows(path: Path, tiers: dict[str, Tier] | None = TIERS) -> list[tuple[Any, ...]]:
    frame, _ = read_outcomes(path, tiers)
    return sorted(map(tuple, frame.to_numpy().tolist()))


def test_a_saved_dataset_is_read_as_any_other_file(tmp_path: Path) -> None:
    folder = saved(datasets.Dataset.from_dict(LONG), tmp_path / "mine")
    assert rows(folder) == [("mine", "", "one", "premium", 1.0), ("mine", "", "one", "simple", 0.0)]
    assert read_outcomes(folder, TIERS)[1] == "mine: 3 rows in, 1 left out (a model without tier)"


def test_a_saved_dataset_that_names_its_tiers_needs_no_map(tmp_path: Path) -> None:
    table = {"prompt": ["one", "one"], "tier": ["simple", "premium"], "score": [0.0, 1.0], "source": ["exam"] * 2}
    folder = saved(datasets.Dataset.from_dict(table), tmp_path / "mine")
    assert rows(folder, None) == [("exam", "", "one", "premium", 1.0), ("exam", "", "one", "simple", 0.0)]
    read, _ = outcome_table([folder], exclude=set())
    assert read.success[0, [0, 2]].tolist() == [0.0, 1.0]


def test_tiers_saved_as_class_labels_are_read_by_name(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "tier": datasets.ClassLabel(names=["premium", "simple"]),
            "score": datasets.Value("float32"),
        }
    )
    table = {"prompt": ["one", "one", "one"], "tier": [0, 1, None], "score": [1.0, 0.25, 0.5]}
    folder = saved(datasets.Dataset.from_dict(table, features=features), tmp_path / "mine")
    assert rows(folder, None) == [("mine", "", "one", "premium", 1.0), ("mine", "", "one", "simple", 0.25)]


def test_a_saved_wide_table_is_read_with_its_map_of_models(tmp_path: Path) -> None:
    wide = {"prompt": ["one"], "eval_name": ["exam"], "big": [1.0], "small": [0.25], "big|total_cost": [0.1]}
    folder = saved(datasets.Dataset.from_dict(wide), tmp_path / "wide")
    assert rows(folder) == [("wide", "exam", "one", "premium", 1.0), ("wide", "exam", "one", "simple", 0.25)]


def test_all_splits_of_a_saved_dataset_dict_are_read(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict(LONG)
    other = datasets.Dataset.from_dict({"prompt": ["three"], "model": ["big"], "score": [0.75]})
    folder = saved(datasets.DatasetDict({"train": part, "test": other}), tmp_path / "both")
    assert [row[2:] for row in rows(folder)] == [
        ("one", "premium", 1.0),
        ("one", "simple", 0.0),
        ("three", "premium", 0.75),
    ]


def test_a_parquet_file_of_datasets_is_read(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(LONG).to_parquet(str(tmp_path / "mine.parquet"))
    assert [row[2:] for row in rows(tmp_path / "mine.parquet")] == [("one", "premium", 1.0), ("one", "simple", 0.0)]


def test_saved_messages_are_judged_as_text(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why is the sky blue?"}]
    table = {"prompt": [messages], "tier": ["simple"], "score": [1.0]}
    folder = saved(datasets.Dataset.from_list([{k: v[0] for k, v in table.items()}]), tmp_path / "chat")
    ((_, _, text, _, _),) = rows(folder, None)
    assert "Why is the sky blue?" in text
    assert "role" not in text


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            {"text": ["a"], "tier": ["simple"], "score": [1.0]},
            "mine has no column 'prompt'; its columns are text, tier",
        ),
        ({"prompt": ["a"], "score": [1.0]}, "mine has no column 'tier'"),
        ({"prompt": ["a"], "huge": [1.0]}, "mine has no column 'score'"),
        ({"prompt": ["a"], "tier": ["huge"], "score": [1.0]}, r"unknown tier in 1 rows: .*mine:1 \(tier = 'huge'\)"),
    ],
)
def test_a_saved_dataset_of_another_shape_is_refused(tmp_path: Path, table: dict[str, list[Any]], says: str) -> None:
    folder = saved(datasets.Dataset.from_dict(table), tmp_path / "mine")
    with pytest.raises(InputError, match=says):
        read_outcomes(folder)


def test_a_split_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_dict(LONG)
    folder = saved(datasets.DatasetDict({"train": whole, "test": whole.remove_columns("score")}), tmp_path / "both")
    with pytest.raises(InputError, match=r"both/test has no column 'score', which other splits have"):
        read_outcomes(folder, TIERS)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"other cannot be read: .*neither a `Dataset` directory"):
        read_outcomes(tmp_path / "other")


@pytest.mark.parametrize(("file", "content"), [("state.json", "{"), ("state.json", "{}"), ("*.arrow", "xx")])
def test_a_damaged_folder_is_refused(tmp_path: Path, file: str, content: str) -> None:
    folder = saved(datasets.Dataset.from_dict(LONG), tmp_path / "mine")
    (damaged,) = folder.glob(file)
    damaged.write_text(content)
    with pytest.raises(InputError, match="mine cannot be read"):
        read_outcomes(folder, TIERS)
