"""The comparison of heads and the fine-tuned teacher, for real on tiny data."""

from pathlib import Path

import numpy as np
import pytest

from training.dataset import Table
from training.distill import Teacher, packaged
from training.finetune import clipped, finetuned
from training.heads import HEADS, Result, calibrated, main, markdown, simplest

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 6)).astype(np.float32)
HARD = X[:, 0] + X[:, 1]
SUCCESS = np.stack([HARD < -0.5, HARD < 0.7, np.ones(len(X))], axis=1).astype(float)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_tells_apart_what_can_be_told_apart(name: str) -> None:
    predict = HEADS[name](X[:300], SUCCESS[:300], 0)
    outputs = np.asarray(predict(X))
    said = calibrated(outputs[:300], SUCCESS[:300], outputs[300:])
    assert said.shape == (100, 3)
    assert (np.diff(said, axis=1) >= 0).all()
    for rank in (0, 1):
        right = said[:, rank][SUCCESS[300:, rank] == 1].mean()
        wrong = said[:, rank][SUCCESS[300:, rank] == 0].mean()
        assert right > wrong + 0.3


def result(behind: float) -> Result:
    figures = {"qwk": 0.7 - behind, "macro_f1": 0.7, "catastrophic": 0.01}
    return Result(figures, {"s": 0.7}, (0.6, 0.8), 0.02, (behind - 0.01, behind + 0.01), 1.0)


def test_the_simplest_head_within_noise_of_the_best_is_named() -> None:
    results = {"plain": result(0.05), "middling": result(0.005), "best": result(0.0)}
    assert simplest(results) == "middling"
    assert markdown(results).endswith("The simplest within noise of the best: middling.")


def test_the_command_compares_heads_on_a_file_of_prompts(
    prompts: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--prompts", str(prompts), "--cache", str(cache), "--folds", "2", "--heads", "ridge", "kNN"]
    assert main(flags) == 0
    table = capsys.readouterr().out
    assert "| ridge |" in table
    assert "| kNN |" in table
    assert "The simplest within noise of the best:" in table


def test_a_source_cannot_be_left_out_where_it_is_the_only_one(
    prompts: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--prompts", str(prompts), "--cache", str(cache), "--leave-source-out"]) == 1
    assert "only the source 'labelled'" in capsys.readouterr().err


def test_a_missing_file_of_prompts_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prompts", str(tmp_path / "none.jsonl")]) == 1
    assert "none.jsonl" in capsys.readouterr().err


def test_a_fine_tuned_teacher_tells_the_tiers_apart_and_is_kept(tmp_path: Path) -> None:
    ease = ["what colour is the", "prove the theorem about the"]
    texts = [f"{ease[number % 2]} thing {number}" for number in range(64)]
    easy = np.array([number % 2 == 0 for number in range(64)])
    success = np.stack([easy, np.full(64, np.nan), np.ones(64)], axis=1)
    names = np.full(64, "")
    table = Table(texts, success, np.ones(64), names, names, names, names)
    teacher = Teacher(packaged(), tmp_path)
    before = teacher.encode(texts, "before")
    tuned = finetuned(teacher, table, epochs=4, seed=0, cache=tmp_path)
    assert tuned.fingerprint != teacher.fingerprint
    assert np.allclose(teacher.encoder.encode(texts), before, atol=1e-5)  # the given one is as it was
    apart = [_distance(vectors, easy) for vectors in (before, tuned.encode(texts, "after"))]
    assert apart[1] > 1.2 * apart[0]
    stamp = next((tmp_path / "finetuned").rglob("model.safetensors")).stat().st_mtime_ns
    assert finetuned(teacher, table, epochs=4, seed=0, cache=tmp_path).fingerprint == tuned.fingerprint
    assert next((tmp_path / "finetuned").rglob("model.safetensors")).stat().st_mtime_ns == stamp


def _distance(vectors: np.ndarray, easy: np.ndarray) -> float:
    return float(np.linalg.norm(vectors[easy].mean(axis=0) - vectors[~easy].mean(axis=0)))


def test_a_long_text_is_clipped_to_its_ends() -> None:
    assert clipped("short") == "short"
    text = "a" * 2_000 + "?"
    assert clipped(text).endswith("a?")
    assert len(clipped(text)) < 1_000
