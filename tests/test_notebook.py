"""The evaluation notebook, executed; and what it shows: predictions beside judged answers, and charts of them."""

import ast
import json
import os
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from conftest import MakeRouter
from matplotlib.figure import Figure

import training
from router_ml import Catalog, ComplexityClassifier, InputError
from router_ml.types import TIERS, Tier
from training import charts
from training.metrics import bootstrap, bootstrap_each, ece, reliability
from training.predictions import Predictions, of_labelled, of_ledger, price_what_if, report_of_ledger

NOTEBOOK = Path(training.__file__).parent / "evaluation.ipynb"
LABELLED = Path(training.__file__).parent.parent / "data" / "prompts.jsonl"
JUDGED = 45
FIGURES = 4  # curves, calibration, confusion, prices


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fifth of the labelled prompts of one message, so that baselines are quick."""
    lines = [line for line in LABELLED.read_text(encoding="utf-8").splitlines() if '"prompt"' in line][::5]
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def ledger_url(make_router: MakeRouter, labelled: Path, tmp_path: Path) -> str:
    """Held-out prompts asked of the loopback provider at every tier and judged as labelled; one at one tier only."""
    rows = [json.loads(line) for line in labelled.read_text(encoding="utf-8").splitlines()]
    held = [row for row in rows if row["split"] == "test"]
    sample = [row for tier in TIERS for row in [row for row in held if row["tier"] == tier][: JUDGED // 3]]
    router = make_router(prompts="full", max_attempts=1)
    for row in sample:
        for tier in TIERS:
            reply = router.complete(row["prompt"], tier.value)
            router.feedback(reply.request_id, score=float(tier >= Tier(row["tier"])))
    router.feedback(router.complete("Only asked once.", "simple").request_id, score=1.0)
    router.close()
    return f"sqlite:///{tmp_path}/router.db"


def executed(monkeypatch: pytest.MonkeyPatch, **environ: str) -> nbformat.NotebookNode:
    for name in [name for name in os.environ if name.startswith("ROUTER_ML_")]:
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    return client.execute()


def shown(notebook: nbformat.NotebookNode) -> tuple[str, int]:
    """All text of the outputs, and the number of figures; nothing may have been written to stderr."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    data = [output["data"] for output in outputs if "data" in output]
    text = "\n".join(str(item.get("text/markdown") or item["text/plain"]) for item in data)
    return text, sum("image/png" in item for item in data)


def test_the_notebook_makes_a_report_of_a_ledger(
    monkeypatch: pytest.MonkeyPatch, ledger_url: str, labelled: Path
) -> None:
    text, figures = shown(executed(monkeypatch, ROUTER_ML_LEDGER=ledger_url, ROUTER_ML_PROMPTS=str(labelled)))
    assert f"{JUDGED} prompts in the report, {JUDGED + 1} judged, {JUDGED} of them at every tier" in text
    assert "disagree" not in text
    assert figures >= FIGURES


def test_the_notebook_loads_the_report_of_the_packaged_artefact(monkeypatch: pytest.MonkeyPatch) -> None:
    text, figures = shown(executed(monkeypatch))
    report = ComplexityClassifier.load().card["held_out"]
    assert f"{report['prompts']} prompts in the report" in text
    assert report["verdict"] in text
    assert "disagree" not in text
    assert figures >= FIGURES + 1  # by task and language, which a ledger does not know


def test_the_notebook_defines_nothing_and_keeps_no_output() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs")
        code = "" if cell.cell_type != "code" else cell.source.replace("%config", "#")
        defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
        assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, defined)]


def test_only_prompts_judged_at_every_tier_count_and_too_few_are_refused(
    make_router: MakeRouter, classifier: ComplexityClassifier, labelled: Path, tmp_path: Path
) -> None:
    router = make_router(prompts="full")
    url = f"sqlite:///{tmp_path}/router.db"
    with pytest.raises(InputError, match="no judged answer"):
        of_ledger(classifier, url)
    for tier, score in ((Tier.SIMPLE, 0.0), (Tier.SIMPLE, 0.5), (Tier.COMPLEX, 1.0), (Tier.PREMIUM, 1.0)):
        router.feedback(router.complete("Sort three words.", tier.value).request_id, score=score)
    router.feedback(router.complete("Only asked once.", "simple").request_id, score=1.0)
    judged = of_ledger(classifier, url)
    assert judged.table.labels.tolist() == ["complex", ""]
    assert judged.whole.table.success.tolist() == [[0.25, 1.0, 1.0]]
    assert judged.whole.cost_usd[0, 0] < judged.whole.cost_usd[0, 2]
    with pytest.raises(InputError, match=r"1 of 2 judged prompts .* at least 30"):
        report_of_ledger(judged, labelled)


def test_the_worst_come_first_with_their_probabilities(classifier: ComplexityClassifier, labelled: Path) -> None:
    worst = of_labelled(classifier, labelled).worst(5)
    chances = [row[f"P({row['needed']})"] for row in worst.to_dict("records")]
    assert chances == sorted(chances)
    assert chances[0] < 0.2
    assert worst["prompt"].str.len().max() <= 163
    assert np.allclose(worst[[f"P({tier})" for tier in TIERS]].sum(axis=1), 1.0)


def test_reliability_is_of_the_prompts_judged_at_the_tier(labelled: Path, classifier: ComplexityClassifier) -> None:
    said = of_labelled(classifier, labelled)
    said.table.success[:, 0] = np.nan
    said.table.success[:3, 0] = 1.0
    bins, error = said.reliability(Tier.SIMPLE)
    assert bins[:, 2].sum() == 3
    assert error == pytest.approx(1.0 - said.success[:3, 0].mean())
    said.table.success[:, 0] = np.nan
    with pytest.raises(InputError, match="judged at tier simple"):
        said.reliability(Tier.SIMPLE)


def test_reliability_has_eces_bins() -> None:
    said, happened = np.array([0.1, 0.3, 0.8, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    assert reliability(said, happened, 2) == pytest.approx(np.array([[0.2, 0.5, 2], [0.9, 1.0, 2]]))
    assert ece(said, happened, 2) == pytest.approx(0.2)


def test_statistics_reckoned_together_have_the_intervals_they_have_alone() -> None:
    values = np.arange(20.0)
    both = bootstrap_each(lambda rows: {"mean": values[rows].mean(), "top": values[rows].max()}, 20, seed=1, rounds=50)
    assert both["mean"] == bootstrap(lambda rows: float(values[rows].mean()), 20, seed=1, rounds=50)
    assert both["top"] == bootstrap(lambda rows: float(values[rows].max()), 20, seed=1, rounds=50)


def test_a_dearer_premium_saves_more_and_is_asked_less(classifier: ComplexityClassifier) -> None:
    table = price_what_if(classifier, Catalog.load(), [1.0, 4.0], [0.95])
    assert table["saved"].is_monotonic_increasing
    assert table["premium"].is_monotonic_decreasing
    assert (table["kept"] >= 0.95).all()
    assert np.allclose(table[["simple", "complex", "premium"]].sum(axis=1), 1.0)


def test_the_band_holds_the_curve_and_ends_at_the_constants(classifier: ComplexityClassifier, labelled: Path) -> None:
    said = of_labelled(classifier, labelled)
    perfect = Predictions(said.table, said.table.success, said.cost_usd)
    low, high = charts.curve_band(perfect, np.array([0.5, 1.0]), seed=0, rounds=20)
    assert (low <= high).all()
    assert high[1] == pytest.approx(said.table.success[:, 2].max())


def test_a_learning_curve_says_what_1000_outcomes_buy() -> None:
    ax = Figure().subplots()
    steps = {size: {"apgr": value, "interval": [value - 0.02, value + 0.03]} for size, value in
             (("0", 0.52), ("250", 0.55), ("1000", 0.6))}  # fmt: skip
    charts.draw_learning_curve(ax, {"exam": {"held_out": 90, "steps": steps}})
    title = ax.get_title(loc="left")
    assert "+0.080 on average" in title.replace("\n", " ")
    assert [label.get_text() for label in ax.get_legend().get_texts()] == ["exam (90 held out)"]
