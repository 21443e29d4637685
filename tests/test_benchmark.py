"""The two commands that read outcome files, on small files of their shape."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training import benchmark, learning_curve

TASKS = ("mmlu_x", "gsm8k", "mt_bench_turn1/coding")


@pytest.fixture
def routellm(tmp_path: Path) -> Path:
    rows = []
    for task in TASKS:
        for number in range(12):
            hard = number % 2
            name = f"mtb{number}#1" if "mt_bench" in task else f"{task}{number}"
            ask = "Prove the general theorem rigorously, case" if hard else "what colour is thing"
            for model, score in (("weak", 0.0 if hard else 1.0), ("strong", 1.0)):
                rows.append(
                    {"task": task, "prompt_id": name, "prompt": f"{ask} {number}", "tier": model, "score": score}
                )
                if "mt_bench" in task:
                    turn = {"task": "mt_bench_turn2/coding", "prompt_id": f"mtb{number}#2", "prompt": "and then?"}
                    rows.append({**turn, "tier": model, "score": 0.5})
    pd.DataFrame(rows).to_parquet(tmp_path / "benchmark.parquet")
    return tmp_path / "benchmark.parquet"


def test_a_conversation_is_decided_on_its_first_turn_and_scored_on_both(routellm: Path) -> None:
    sets = benchmark.read_routellm(routellm)
    prompts, quality = sets["MT-Bench"]
    assert len(prompts) == 12
    assert "and then?" not in prompts
    hard = np.array(["Prove" in prompt for prompt in prompts])
    assert quality[hard].tolist() == [[0.25, 0.75]] * 6
    assert quality[~hard].tolist() == [[0.75, 0.75]] * 6


def test_an_arm_stands_beside_the_published_figures(routellm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = ["--routellm", str(routellm), "--arms", *benchmark.OURS]
    assert benchmark.main([*ours, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["MMLU"]["published"]["apgr"] == 0.603
    assert results["MMLU"]["router_ml"]["apgr"] == pytest.approx(0.75)  # all hard ones first: half the area is gained
    assert benchmark.main(ours) == 0
    assert "| GSM8K (12) | length |" in capsys.readouterr().out


def test_another_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "x.parquet")
    assert benchmark.main(["--routellm", str(tmp_path / "x.parquet")]) == 1
    assert "is not RouteLLM's benchmark" in capsys.readouterr().err


def test_outcomes_of_a_source_teach_the_source(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = []
    for source in ("alpha", "beta"):
        for number in range(600):
            hard = rng.random() < 0.5
            # What is hard is a word that says nothing elsewhere, and differs by source.
            word = {"alpha": ("zinc", "iron"), "beta": ("oak", "elm")}[source][hard]
            prompt = f"item {number} of {word} {rng.integers(1000)}"
            for tier, score in (("simple", 0.1 if hard else 0.9), ("complex", 0.5), ("premium", 0.9)):
                frames.append({"source": source, "prompt": prompt, "tier": tier, "score": score})
    pd.DataFrame(frames).to_parquet(tmp_path / "outcomes.parquet")
    labelled = Path(__file__).parents[1] / "data" / "prompts.jsonl"
    lines = labelled.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "prompts.jsonl").write_text("".join(lines[::40]), encoding="utf-8")
    flags = ["--outcomes", tmp_path / "outcomes.parquet", "--prompts", tmp_path / "prompts.jsonl", "--members", 1]
    assert learning_curve.main([str(flag) for flag in [*flags, "--out", tmp_path / "curve.json"]]) == 0
    curves = json.loads((tmp_path / "curve.json").read_text())
    assert set(curves["alpha"]["steps"]) == {"0", "250"}
    before, after = (np.mean([curve["steps"][size]["apgr"] for curve in curves.values()]) for size in ("0", "250"))
    assert after > before + 0.05
    assert after > 0.65
