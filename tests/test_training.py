"""Training for real on tiny data: the MiniLM teacher from its wheel, distilled, fitted, written and loaded."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import THINGS

from router_ml import ComplexityClassifier, InputError, Ledger
from router_ml.types import Attempt, Decision, Offer, Outcome, Tier
from training.dataset import ledger_table, outcome_table, read_labelled, stem, without_options
from training.evaluate import Report, chosen, ranks
from training.metrics import tier_metrics
from training.outcomes import read_outcomes, read_tiers
from training.retrain import main


@pytest.fixture
def outcomes(tmp_path: Path) -> Path:
    frame = pd.DataFrame(
        {
            "source": "exam",
            "prompt": [f"question {i} about {THINGS[i // 3]}" for i in range(30)],
            "tier": ["simple", "complex", "premium"] * 10,
            "score": [0.0, 0.5, 1.0] * 10,
        }
    )
    frame.to_parquet(tmp_path / "outcomes.parquet")
    return tmp_path / "outcomes.parquet"


def run(prompts: Path, out: Path, *more: object) -> int:
    flags = ["--prompts", prompts, "--out", out, "--cache", prompts.parent / "cache", *more]
    return main([str(flag) for flag in [*flags, "--dimensions", 8, "--members", 2, "--hidden", 8, "--seeds", 2]])


def test_retrain_learns_writes_and_repeats_itself(prompts: Path, outcomes: Path, tmp_path: Path) -> None:
    cards = []
    for out in ("one", "two"):
        assert run(prompts, tmp_path / out, "--outcomes", outcomes) == 0
        cards.append((tmp_path / out / "card.json").read_text())
    assert cards[0] == cards[1]
    classifier = ComplexityClassifier.load(tmp_path / "one")
    report = Report(**json.loads(cards[0])["held_out"])
    assert report.figures["qwk"] > 0.8
    assert len(report.seeds) == 2
    assert report.seeds[0] == report.figures["qwk"]
    test = read_labelled(prompts)[1]  # the artefact as it is read back is the one that was reported on
    said = tier_metrics(ranks(test.labels), chosen(classifier.predict_success(test.texts)))
    assert said == pytest.approx(report.figures)
    assert set(report.baselines) == {
        "majority",
        "length",
        "tf-idf + logistic",
        "kNN on MiniLM",
        "logistic on MiniLM",
    }
    assert report.figures["qwk"] > report.baselines["majority"]["qwk"] == 0
    assert report.verdict.startswith("Routes better")
    before = (tmp_path / "one" / "encoder.safetensors").read_bytes()
    assert run(prompts, tmp_path / "one", "--head-only", "--seed", 1) == 0
    assert (tmp_path / "one" / "encoder.safetensors").read_bytes() == before
    assert ComplexityClassifier.load(tmp_path / "one").version != classifier.version


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[:4], "too few prompts"),
        (lambda rows: [row | {"tier": "simple"} for row in rows], "needs tier complex"),
    ],
)
def test_a_table_that_teaches_nothing_is_refused_and_nothing_is_written(
    prompts: Path,
    tmp_path: Path,
    change: Callable[[list[dict[str, str]]], list[dict[str, str]]],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = change([json.loads(line) for line in prompts.read_text().splitlines()])
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(prompts, tmp_path / "out") == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [("{", ":2"), ('{"id": "a"}', "prompt or messages"), ("SAME", "occurs twice")],
)
def test_a_malformed_row_is_named_by_file_and_line(prompts: Path, line: str, says: str) -> None:
    first = prompts.read_text().splitlines()[0]
    prompts.write_text(f"{first}\n{first if line == 'SAME' else line}\n")
    with pytest.raises(InputError, match=says):
        read_labelled(prompts)


def test_labels_that_differ_make_a_soft_target(prompts: Path) -> None:
    row = json.loads(prompts.read_text().splitlines()[0]) | {"labels": ["simple", "complex", "simple"]}
    prompts.write_text(json.dumps(row) + "\n")
    train, test = read_labelled(prompts)
    assert len(train) == 0
    assert test.success.tolist() == [[pytest.approx(2 / 3), 1.0, 1.0]]


def test_outcomes_are_averaged_by_tier_and_decontaminated(outcomes: Path) -> None:
    table, lines = outcome_table([outcomes], exclude={stem("Question 0 about river north!")})
    assert len(table) == 29
    assert table.weight.mean() == pytest.approx(1.0)
    assert lines == ["outcomes.parquet: 30 rows in; 29 prompts kept, 1 dropped (held-out or benchmark stem)"]


def test_options_of_an_exam_are_cut() -> None:
    assert without_options("What is 2 + 2?\nA. 3\nB. 4\nAnswer:") == "What is 2 + 2?"
    assert without_options("Why?\nOptions:\nA. x") == "Why?"
    assert without_options("Plan A. is good") == "Plan A. is good"


ROWS = [
    {"prompt": "one", "model": "small", "score": 0.0},
    {"prompt": "one", "model": "big", "score": 1.0},
    {"prompt": "two", "model": "other", "score": 0.5},
]


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_outcomes_are_read_in_every_form(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"mine.{ending}"
    frame = pd.DataFrame(ROWS)
    if ending == "parquet":
        frame.to_parquet(path)
    elif ending == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    read, line = read_outcomes(path, {"small": Tier.SIMPLE, "big": Tier.PREMIUM})
    assert read[["source", "prompt", "tier", "score"]].to_numpy().tolist() == [
        ["mine", "one", "simple", 0.0],
        ["mine", "one", "premium", 1.0],
    ]
    assert line == f"mine.{ending}: 3 rows in, 1 left out (a model without tier)"


def test_a_wide_table_is_read_with_its_map_of_models(tmp_path: Path) -> None:
    wide = pd.DataFrame(
        {"prompt": ["one"], "eval_name": ["exam"], "big": [1.0], "small": [0.25], "big|total_cost": [0.1]}
    )
    wide.to_csv(tmp_path / "wide.csv", index=False)
    (tmp_path / "tiers.toml").write_text('small = "simple"\nbig = "premium"\n')
    read, _ = read_outcomes(tmp_path / "wide.csv", read_tiers(tmp_path / "tiers.toml"))
    assert sorted(map(tuple, read[["task", "tier", "score"]].to_numpy())) == [
        ("exam", "premium", 1.0),
        ("exam", "simple", 0.25),
    ]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "a", "tier": "simple", "score": 1.5}], r"mine\.jsonl:1 \(score = '1\.5'\)"),
        ([{"prompt": "a", "tier": "simple", "score": 1}, {"prompt": "b", "tier": "simple", "score": None}], ":2"),
        ([{"prompt": " ", "tier": "simple", "score": 1}], "no prompt in 1 rows"),
        ([{"prompt": "a", "tier": "huge", "score": 1}], "tier = 'huge'"),
        ([{"text": "a", "tier": "simple", "score": 1}], "no column 'prompt'"),
        ([{"prompt": "a", "score": 1}], "no column 'tier'"),
        ([{"prompt": "a", "big": 1}], "no column 'score'"),
    ],
)
def test_malformed_outcomes_are_named(tmp_path: Path, rows: list[dict[str, object]], says: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=says):
        read_outcomes(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for name, content in (("a.xlsx", "x"), ("b.parquet", "x"), ("c.jsonl", "{")):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=name):
            read_outcomes(tmp_path / name)
    (tmp_path / "t.toml").write_text('m = "huge"')
    with pytest.raises(InputError, match="'m' = 'huge'"):
        read_tiers(tmp_path / "t.toml")


def test_a_folder_without_the_package_for_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"needs the package 'datasets' \(pip install 'router-ml\[hub\]'\)"):
        read_outcomes(tmp_path)


def test_a_ledger_teaches_the_tier_that_answered(tmp_path: Path) -> None:
    url, now = f"sqlite:///{tmp_path}/router.db", datetime.now(UTC)
    offer = Offer("p", "m", Tier.COMPLEX)
    ledger = Ledger(url)
    for number, score in enumerate((1.0, 0.25)):
        ledger.start(f"r{number}", Decision(Tier.SIMPLE, (offer,), "why"), f"prompt {number}", now)
        ledger.finish(f"r{number}", "answered", [Attempt(offer, now, 1.0)], now)
        ledger.add_outcome(Outcome(f"r{number}", score, "user", now))
    ledger.close()
    table, lines = ledger_table(url, exclude={stem("prompt 0")})
    assert table.texts == ["prompt 1"]
    assert np.array_equal(table.success, [[np.nan, 0.25, np.nan]], equal_nan=True)
    assert lines == ["ledger: 2 judged answers in, 1 dropped (held-out or benchmark stem)"]
