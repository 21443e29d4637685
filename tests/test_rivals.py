"""The benchmark's other arms: what can be said without their packages, and each of them where it is installed."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from router_ml.errors import InputError
from training import benchmark, rivals
from training.factorisation import MatrixFactorisation, Recipe, fit
from training.metrics import apgr

QUICK = Recipe(dimensions=8, epochs=20, rate=0.01)
RETRAINED = "routellm-mf-retrained-by-us"
OF_PACKAGE = {"litellm-heuristic": "litellm", "litellm-heuristic-v2": "litellm", "semantic-router": "semantic_router"}


@pytest.fixture
def routellm(tmp_path: Path) -> Path:
    rows = [
        {"task": task, "prompt_id": f"{task}{number}", "prompt": f"{ask} {number}", "tier": tier, "score": score}
        for task in ("mmlu_x", "gsm8k", "mt_bench_turn1/coding")
        for number in range(6)
        for ask in [("what colour is thing", "Prove rigorously, step 1 then step 2, theorem")[number % 2]]
        for tier, score in (("weak", 1.0 - number % 2), ("strong", 1.0))
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "benchmark.parquet")
    return tmp_path / "benchmark.parquet"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    asks = {"simple": "what colour is the {}", "premium": "prove the theorem about the {} rigorously"}
    rows = [
        {"id": f"{tier}{thing}", "prompt": ask.format(thing), "task": "t", "language": "en", "tier": tier, "why": "w",
         "split": "train"}
        for tier, ask in asks.items()
        for thing in ("sky", "sea", "sun", "sand", "snow", "star")
    ]  # fmt: skip
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "prompts.jsonl"


@pytest.fixture
def outcomes(tmp_path: Path) -> Path:
    rows = [
        {"source": "s", "prompt": f"{ask} {number}", "tier": tier, "score": score}
        for number in range(12)
        for ask, weak in (("what colour is item", 1.0), ("show with rigour the lemma on", 0.0))
        for tier, score in (("simple", weak), ("premium", 1.0))
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "outcomes.parquet")
    return tmp_path / "outcomes.parquet"


def two_kinds(prompts: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of two kinds of prompts, and the quality of three models: on one kind the stronger win, on the other
    all do equally well. The third model is seen on half of them."""
    rng = np.random.default_rng(seed)
    hard = rng.random(prompts) < 0.5
    x = np.where(hard[:, None], [1.0, 0.0, 0.5], [0.0, 1.0, 0.5]) + 0.05 * rng.standard_normal((prompts, 3))
    quality = np.where(hard[:, None], [0.0, 0.5, 1.0], 1.0)
    quality[::2, 1] = np.nan
    return x.astype(np.float32), quality


def test_a_matrix_factorisation_learns_where_the_strong_model_wins() -> None:
    x, quality = two_kinds(300)
    model = fit(x, quality, np.ones(300), seed=0, recipe=QUICK)
    unseen, truth = two_kinds(200, seed=1)
    ends = truth[:, [0, 2]]
    best = apgr(ends[:, 1] - ends[:, 0], ends)
    assert apgr(model.advantage(2, 0, unseen), ends) > 0.98 * best


def test_a_prompt_without_weight_teaches_nothing() -> None:
    x, quality = two_kinds(300)
    lies = quality[:, ::-1]
    weight = np.concatenate([np.ones(300), np.zeros(300)])
    model = fit(np.concatenate([x, x]), np.concatenate([quality, lies]), weight, seed=0, recipe=QUICK)
    hard = quality[:, 0] == 0.0
    assert model.advantage(2, 0, x)[hard].min() > model.advantage(2, 0, x)[~hard].max()


def test_the_same_seed_gives_the_same_model_and_leaves_torchs_own_alone() -> None:
    x, quality = two_kinds(50)
    before = torch.random.get_rng_state()
    one, two = (fit(x, quality, np.ones(50), seed=3, recipe=QUICK).advantage(2, 0, x) for _ in range(2))
    assert one.tolist() == two.tolist()
    assert torch.equal(before, torch.random.get_rng_state())


def test_two_models_are_as_far_apart_whoever_is_named_first() -> None:
    model = MatrixFactorisation(3, 4, 5)
    x = np.eye(4, dtype=np.float32)
    assert model.advantage(2, 0, x).tolist() == pytest.approx((-model.advantage(0, 2, x)).tolist())


def test_the_form_is_routellms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not find_spec("routellm"):
        pytest.skip("routellm is not installed")
    monkeypatch.setenv("OPENAI_API_KEY", "unused")  # importing it makes a client, which is never called
    from routellm.routers.matrix_factorization.train_matrix_factorization import MFModel_Train

    x, _ = two_kinds(10)
    np.save(tmp_path / "embeddings.npy", x)
    theirs = MFModel_Train(dim=5, num_models=3, num_prompts=10, text_dim=3, npy_path=tmp_path / "embeddings.npy")
    ours = MatrixFactorisation(3, 3, 5)
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if not name.startswith("Q")})
    strong, weak = torch.full((10,), 2), torch.zeros(10, dtype=torch.int64)
    expected = theirs(strong, weak, torch.arange(10), test=True).detach()
    assert ours.advantage(2, 0, x) == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.fixture
def run(routellm: Path, prompts: Path) -> Callable[..., int]:
    """The command on small files of all kinds."""
    files = ["--routellm", routellm, "--prompts", prompts, "--cache", prompts.parent / "cache"]
    return lambda *more: benchmark.main([str(flag) for flag in [*files, *more]])


@pytest.mark.parametrize(("arm", "package"), OF_PACKAGE.items())
def test_an_arm_whose_package_is_missing_is_named_not_run(
    arm: str, package: str, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    assert run("--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert arm not in results["MMLU"]
    assert results["absent"][arm].startswith(f"not installed: {package} (pip install")
    assert run() == 0
    assert f"\n{arm}: not installed" in capsys.readouterr().out
    assert run("--arms", arm) == 1  # asked for by name, so not passed over
    assert f"{arm}: not installed" in capsys.readouterr().err


def test_a_package_that_cannot_be_imported_is_named_with_the_reason(
    routellm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "broken_rival.py"
    package.write_text("import a_dependency_that_is_missing")
    monkeypatch.syspath_prepend(tmp_path)

    def make(_: rivals.Materials) -> rivals.Scorer:
        import broken_rival  # noqa: F401 - for the error

        raise AssertionError

    monkeypatch.setattr(rivals, "RIVALS", {"broken": rivals.Rival(("broken_rival",), "pip install it", make)})
    materials = rivals.Materials(routellm, [], tmp_path, tmp_path, 0)
    made, absent = rivals.make_arms(None, materials)
    assert not made
    assert absent == {"broken": "cannot be imported: No module named 'a_dependency_that_is_missing' (pip install it)"}
    with pytest.raises(InputError, match="broken: cannot be imported"):
        rivals.make_arms(["broken"], materials)


def test_arms_can_be_chosen(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--arms", "length") == 0
    results = json.loads(capsys.readouterr().out)
    assert set(results["GSM8K"]) == {"prompts", "published", "length"}
    assert results["absent"] == {}


def test_without_outcomes_the_retrained_arm_is_absent(routellm: Path, prompts: Path) -> None:
    materials = rivals.Materials(routellm, [], prompts, prompts.parent, 0)
    assert rivals.RIVALS[RETRAINED].lacks(materials) == "no outcomes to learn from (--outcomes FILE)"


def test_the_retrained_arm_learns_from_outcomes(
    run: Callable[..., int], outcomes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--json", "--arms", RETRAINED, "--outcomes", outcomes) == 0
    figures = json.loads(capsys.readouterr().out)["MMLU"][RETRAINED]
    assert figures["apgr"] == pytest.approx(0.75)  # all hard ones first: half the area is gained


def test_outcomes_of_benchmark_prompts_are_not_learned_from(
    run: Callable[..., int], routellm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = pd.read_parquet(routellm).replace({"tier": {"weak": "simple", "strong": "premium"}})
    seen.to_parquet(tmp_path / "seen.parquet")
    assert run("--arms", RETRAINED, "--outcomes", tmp_path / "seen.parquet") == 1
    assert "no prompt that models of two tiers answered" in capsys.readouterr().err


@pytest.mark.parametrize(("arm", "package"), OF_PACKAGE.items())
def test_an_installed_arm_ranks_proofs_over_colours(arm: str, package: str, routellm: Path, prompts: Path) -> None:
    if not find_spec(package):
        pytest.skip(f"{package} is not installed")
    flags = ["--routellm", routellm, "--prompts", prompts, "--cache", prompts.parent / "cache", "--arms", arm, "--json"]
    command = [sys.executable, "-m", "training.benchmark", *map(str, flags)]  # its imports warn: a process of its own
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert json.loads(done.stdout)["MMLU"][arm]["apgr"] == pytest.approx(0.75)
