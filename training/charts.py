"""Charts of a Report and of predictions, each drawn on the axes it is given, with its one message as the title.

Colours are Okabe and Ito's, which stay apart for colour-blind eyes; lines differ in style too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from router_ml.types import TIERS, Tier
from training.evaluate import Report
from training.metrics import Array, hull
from training.predictions import Predictions, curve_band

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

COLOURS = {Tier.SIMPLE: "#009E73", Tier.COMPLEX: "#E69F00", Tier.PREMIUM: "#0072B2"}
ECE_AIM = 0.03
LANGUAGE_SLACK = 0.1  # of kappa, that a language may lie below English
_OURS, _GREY = "#000000", "#777777"
_OTHERS = ("#CC79A7", "#56B4E9", "#D55E00", "#009E73", "#E69F00")
_DASHES = ((0, (1, 1)), (0, (5, 2)), "-.", (0, (3, 1, 1, 1)), (0, (8, 2)))
_TITLE_CHARS = 100


def draw_curves(ax: Axes, report: Report, predictions: Predictions, *, seed: int = 0) -> None:
    """Quality against cost: the router with its band, each baseline, each tier always, and the hull of those."""
    flat = np.array([report.routing["always"][tier.value] for tier in TIERS])
    top_usd = flat[-1, 0]
    shares = np.linspace(flat[0, 0] / top_usd, 1.0, 60)
    low, high = curve_band(predictions, shares, seed=seed)
    ax.fill_between(100 * shares, low, high, color=_OURS, alpha=0.15, linewidth=0, label="its 95 % interval")
    for number, (name, points) in enumerate(report.curves.items()):
        edge = hull(np.array(points))
        ours = not number
        colour, dashes = (_OURS, "-") if ours else (_OTHERS[(number - 1) % 5], _DASHES[(number - 1) % 5])
        ax.plot(
            100 * np.append(edge[:, 0] / top_usd, 1.0),
            np.append(edge[:, 1], edge[-1, 1]),
            color=colour,
            linestyle=dashes,
            linewidth=2.4 if ours else 1.5,
            label=name,
            zorder=3 if ours else 2,
        )
    mixed = hull(flat)
    ax.plot(100 * mixed[:, 0] / top_usd, mixed[:, 1], color=_GREY, linewidth=1.2, label="mixes of constants")
    for tier, (usd, quality) in zip(TIERS, flat, strict=True):
        ax.plot(100 * usd / top_usd, quality, "o", color=COLOURS[tier], markersize=8, zorder=4)
        ax.annotate(
            f"always {tier}", (100 * usd / top_usd, quality), (6, -16) if tier < Tier.PREMIUM else (8, -34),
            textcoords="offset points", ha="left" if tier < Tier.PREMIUM else "right",
        )  # fmt: skip
    ax.set_xlabel(f"mean cost of an answer, % of always premium (USD {1_000 * top_usd:.2f} per 1,000)")
    ax.set_ylabel("mean quality, 0 to 1")
    ax.legend(loc="lower right", fontsize="small")
    gain, (least, most) = report.routing["delta_aiq"], report.routing["delta_aiq_interval"]
    better = "Routes better than any mix of constants" if least > 0 else "Not shown to beat a mix of constants"
    _title(ax, f"{better}: {gain:+.3f} AIQ (95 % interval {least:+.3f} to {most:+.3f})")


def draw_reliability(axes: Sequence[Axes], predictions: Predictions) -> None:
    """One axes a tier: what was said against what was judged, in bins of equally many prompts."""
    errors = {}
    for tier, ax in zip(TIERS, axes, strict=True):
        bins, errors[tier] = predictions.reliability(tier)
        said, happened, prompts = bins.T
        ax.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
        ax.errorbar(
            said, happened, _spread(happened, _wilson(happened, prompts)), fmt="o", color=COLOURS[tier], capsize=2
        )
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xlabel="predicted P(acceptable)")
        ax.set_title(f"{tier}: ECE {errors[tier]:.3f} ({len(bins)} bins)", fontsize="medium")
    axes[0].set_ylabel("share judged acceptable")
    worst = max(errors, key=errors.__getitem__)
    kept = "within" if errors[worst] <= ECE_AIM else "above"
    _suptitle(axes, f"The largest calibration error, {errors[worst]:.3f} for {worst}, is {kept} the aim of {ECE_AIM} "
              f"({len(predictions):,} prompts)")  # fmt: skip


def draw_confusion(ax: Axes, report: Report) -> None:
    """Counts, shaded by their share of the prompts that need the tier."""
    counts = np.array(report.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        share = shares[row, column]
        colour = "white" if share > 0.55 else "black"
        ax.text(column, row, f"{counts[row, column]}\n{share:.0%}", ha="center", va="center", color=colour)
    names = [tier.value for tier in TIERS]
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="tier chosen", ylabel="tier needed (% of the row)")
    rate, (low, high) = report.figures["catastrophic"], report.intervals["catastrophic"]
    _title(ax, f"{rate:.1%} of prompts need premium and get simple ({low:.1%} to {high:.1%})", 44)


def draw_tasks(ax: Axes, report: Report) -> None:
    """Kappa by task, beside that of all prompts."""
    overall = report.figures["qwk"]
    weakest = min(report.by_task.items(), key=lambda group: group[1]["qwk"], default=None)
    said = f"Weakest task: {weakest[0]}, kappa {weakest[1]['qwk']:.2f}" if weakest else "No task has prompts enough"
    _draw_groups(ax, report.by_task, overall, f"{said} (dashed: all prompts, {overall:.2f})")


def draw_languages(ax: Axes, report: Report) -> None:
    """Kappa by language, beside the least that it may be: English's less ``LANGUAGE_SLACK``."""
    kappas = {name: row["qwk"] for name, row in report.by_language.items()}
    if "en" not in kappas:
        _draw_groups(ax, report.by_language, report.figures["qwk"], "English is not among the languages")
        return
    least = kappas["en"] - LANGUAGE_SLACK
    others = [value for name, value in kappas.items() if name != "en"]
    near = sum(value >= least for value in others)
    said = f"{near} of {len(others)} other languages lie within {LANGUAGE_SLACK} of English (dashed: {least:.2f})"
    _draw_groups(ax, report.by_language, least, said)


def _draw_groups(ax: Axes, groups: Mapping[str, Mapping[str, float]], reference: float, title: str) -> None:
    ordered = sorted(groups.items(), key=lambda group: group[1]["qwk"])
    places, kappas = range(len(ordered)), [row["qwk"] for _, row in ordered]
    ax.hlines(places, reference, kappas, color=_GREY, linewidth=1)
    ax.plot(kappas, places, "o", color=COLOURS[Tier.PREMIUM])
    ax.axvline(reference, color=_OURS, linestyle="--", linewidth=1)
    ax.set_yticks(places, [f"{name} ({row['prompts']:.0f})" for name, row in ordered])
    ax.set_xlabel("quadratic weighted kappa (in brackets: prompts)")
    _title(ax, title, 56)


def draw_price_what_if(axes: Sequence[Axes], table: pd.DataFrame, quality: float) -> None:
    """``price_what_if``'s table: cost saved for each quality target, and each tier's share at ``quality``."""
    saving, share = axes
    for target, colour, dashes in zip(sorted(set(table["quality"])), _OTHERS, _DASHES, strict=False):
        rows = table[table["quality"] == target]
        saving.plot(rows["factor"], 100 * rows["saved"], color=colour, linestyle=dashes, marker="o", markersize=4,
                    label=f"keeping {target:.0%} of premium's quality")  # fmt: skip
    saving.set(ylabel="cost saved against always premium, %", ylim=(0, 100))
    saving.legend(fontsize="small")
    rows = table[table["quality"] == quality]
    below = np.zeros(len(rows))
    for tier in TIERS:
        part = 100 * rows[tier.value].to_numpy(float)
        share.fill_between(rows["factor"], below, below + part, color=COLOURS[tier], alpha=0.85)
        middle = len(rows) // 2
        if part[middle] > 5:
            share.text(rows["factor"].iloc[middle], below[middle] + part[middle] / 2, tier.value, ha="center",
                       va="center", color="white", fontweight="bold")  # fmt: skip
        below += part
    share.set(ylabel=f"share of prompts, %, keeping {quality:.0%}", ylim=(0, 100))
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xticks(rows["factor"], [f"{factor:g}" for factor in rows["factor"]])
        ax.minorticks_off()
        ax.set_xlabel("premium's price, times today's")
    at = rows.set_index("factor")["saved"]
    said = " and ".join(f"{at[factor]:.0%} at {factor:g} times" for factor in (at.index[0], at.index[-1]))
    _suptitle(axes, f"Keeping {quality:.0%} of premium's quality would save {said} today's price of premium")


def draw_learning_curve(ax: Axes, curves: Mapping[str, Any]) -> None:
    """``learning_curve.json``: APGR on each left-out source by how many of its own prompts were learned from."""
    sizes = sorted({int(size) for curve in curves.values() for size in curve["steps"]})
    gains = []
    for number, (source, curve) in enumerate(sorted(curves.items())):
        steps = sorted((int(size), step) for size, step in curve["steps"].items())
        level = np.array([step["apgr"] for _, step in steps])
        bounds = np.array([step["interval"] for _, step in steps])
        shift = 0.03 * (number - (len(curves) - 1) / 2)  # so that intervals do not hide each other
        places = [sizes.index(size) + shift for size, _ in steps]
        drawn = ax.errorbar(places, level, _spread(level, bounds), capsize=2, color=_OTHERS[number % 5])
        drawn[0].set(linestyle=_DASHES[number % 5], marker="osD^v"[number % 5])
        drawn.set_label(f"{source} ({curve['held_out']} held out)")
        gains += [step["apgr"] - level[0] for size, step in steps if size == 1_000]
    ax.axhline(0.5, color=_GREY, linewidth=1)
    ax.annotate("random", (len(sizes) - 1, 0.5), (0, 3), textcoords="offset points", color=_GREY, fontsize="small")
    ax.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    ax.set(xlabel="own prompts with outcomes learned from", ylabel="APGR on the source's held-out prompts")
    ax.legend(fontsize="small")
    said = f"1,000 outcomes of one's own lift APGR by {np.mean(gains):+.3f} on average" if gains else "APGR by own data"
    _title(ax, f"{said} ({len(gains)} sources)" if gains else said)


def _spread(level: Array, bounds: Array) -> Array:
    """Of intervals (n, 2), the distances below and above ``level`` (2, n), as errorbar wants them."""
    spread: Array = np.maximum(np.stack([level - bounds[:, 0], bounds[:, 1] - level]), 0.0)
    return spread


def _wilson(share: Array, count: Array) -> Array:
    """Wilson's 95 % interval of shares (n,) of ``count`` (n,) trials: (n, 2)."""
    z2 = 1.96**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    bounds: Array = np.stack([middle - half, middle + half], axis=1)
    return bounds


def _suptitle(axes: Sequence[Axes], text: str) -> None:
    axes[0].figure.suptitle(text, x=0.01, ha="left", fontsize="medium", fontweight="bold")


def _title(ax: Axes, text: str, width: int = _TITLE_CHARS) -> None:
    ax.set_title(textwrap.fill(text, width), loc="left", fontsize="medium", fontweight="bold")
