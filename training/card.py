"""The model card: what a Report says, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router_ml.types import TIERS
from training.evaluate import Report

_COLUMNS = {
    "qwk": "QWK",
    "macro_f1": "macro-F1",
    "adjacent": "adjacent",
    "catastrophic": "catastrophic",
    "under": "under-routed",
    "over": "over-routed",
}


def markdown(facts: Mapping[str, Any], report: Report) -> str:
    """README.md of the artefact. ``facts``: the card's own fields."""
    settings = ", ".join(f"{name} {value}" for name, value in facts["settings"].items())
    return f"""# Model card: {facts["name"]}, version {facts["version"]}

Says of a prompt how likely a simple, complex or premium model is to answer it acceptably. A static encoder (token
vectors distilled from {facts["teacher"]["name"]}, Apache-2.0, fine-tuned on the training prompts; what tokens, pairs
and phrases of three say of each tier; the look of the text) and an average of small networks, calibrated per tier.
Numpy alone evaluates it. Code and labelled prompts are Apache-2.0.

Reproduce: `make retrain` (`python -m training.retrain`; {settings}). Trained on:
{chr(10).join("- " + line for line in facts["training_data"])}

## Held-out labelled prompts

{report.prompts} prompts that nothing was fitted on, 95 % bootstrap intervals. {_behind(report)}
The shipped data has two sources, `wave 1` and `wave 2` (data/README.md). Figures of wave 1 are optimistic: most kinds
of features and sizes were chosen with an eye on its held-out prompts. What came later was chosen by cross-validation on
training prompts, but for the share of polite copies, which was raised after a look at how many held-out tiers courtesy
changes. On both, the same writers wrote both splits, and siblings on one topic, asked at several tiers, can stand on
both sides, as the split goes by the beginning of the text. A source that is left out whole is judged much less well
(`python -m training.heads --leave-source-out`; training/LOG.md): expect that of your own prompts at first.

{_figures(report)}

**Verdict.** {report.verdict} Keeping 95 % of premium's quality it saves
{report.routing["cost_save"]["0.95"]:.0%} of always-premium's cost at catalog prices, keeping 98 %
{report.routing["cost_save"]["0.98"]:.0%}, of the labels' idea of quality (1 where the tier is at least the one needed).

| tier | ECE (15 equal-mass bins) | Brier | AUROC |
|---|---|---|---|
{chr(10).join(_calibration(tier.value, report.calibration[tier.value]) for tier in TIERS)}

Rows needed, columns chosen (simple, complex, premium): {report.confusion}.

Fitted from {len(report.seeds)} seeds, the head's kappa is {min(report.seeds):.3f} to {max(report.seeds):.3f}; the
artefact is the first of them, not the best.

{_groups("source", report.by_source)}

{_groups("task", report.by_task)}

{_groups("language", report.by_language)}

## Limits

- "Acceptable" is what data/README.md says, as language models applied it: no answer of a real model was graded for it.
- The prompts were written by language models; people's own prompts will differ. Learn from your own outcomes.
- The tokenizer's vocabulary is English: other languages are seen in small pieces, and judged less well.
- Very long texts are seen by their first 1,536 and last 512 tokens.
"""


def _behind(report: Report) -> str:
    behind = [name for name, (low, _) in report.beats.items() if low <= 0]
    if behind:
        return f"Not shown to beat {', '.join(behind)} on kappa (paired interval of the difference)."
    return "Beats every baseline below on kappa, with the whole paired interval of the difference."


def _figures(report: Report) -> str:
    ours = " | ".join(
        f"**{report.figures[key]:.3f}** ({report.intervals[key][0]:.3f} to {report.intervals[key][1]:.3f})"
        for key in _COLUMNS
    )
    rows = [f"| this model | {ours} |"]
    for name, row in report.baselines.items():
        rows.append(f"| {name} | " + " | ".join(f"{row[key]:.3f}" for key in _COLUMNS) + " |")
    head = "| | " + " | ".join(_COLUMNS.values()) + " |\n|---|" + "---|" * len(_COLUMNS)
    return head + "\n" + "\n".join(rows)


def _calibration(tier: str, row: Mapping[str, float]) -> str:
    auroc = "" if row["auroc"] is None or row["auroc"] != row["auroc"] else f"{row['auroc']:.3f}"
    return f"| {tier} | {row['ece']:.3f} | {row['brier']:.3f} | {auroc} |"


def _groups(name: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        f"| {group} | {row['prompts']:.0f} | {row['qwk']:.3f} | {row['macro_f1']:.3f} | {row['catastrophic']:.3f} |"
        for group, row in groups.items()
    ]
    return f"| {name} | prompts | QWK | macro-F1 | catastrophic |\n|---|---|---|---|---|\n" + "\n".join(rows)
