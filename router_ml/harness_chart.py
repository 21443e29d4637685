"""The harness's table as a picture: latency and answered share by region and concurrency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from router_ml.errors import ConfigError, RouterError
from router_ml.harness_report import ALL_REGIONS, Line, Report

_PERCENTILES = ("p50_ms", "p95_ms", "p99_ms")


def draw(report: Report, path: Path) -> None:
    """Write ``path``, in the format of its suffix.

    Raises:
        ConfigError: matplotlib is not installed.
        RouterError: the picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigError("a chart needs matplotlib: pip install 'router-ml[notebook]'") from exc
    lines = [line for line in report.of("concurrency") if line.region != ALL_REGIONS]
    streamed = any(line.first_content.p50_ms is not None for line in lines)
    panels = ["latency", *(["first_content"] if streamed else []), "answered"]
    figure = Figure(figsize=(5 * len(panels), 2 + 0.45 * len(lines)), layout="constrained")
    labels = [f"{line.region}, {line.value} concurrent{' (simulated)' if line.simulated else ''}" for line in lines]
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        _panel(axes, panel, lines)
        axes.set_yticks(range(len(lines)), labels)
    figure.axes[0].invert_yaxis()
    figure.suptitle("router-ml harness" + (": SIMULATED providers" if report.simulated else ""))
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as exc:  # ValueError: a suffix that is no format
        raise RouterError(f"{path} cannot be written: {exc}") from exc


def _panel(axes: Any, panel: str, lines: list[Line]) -> None:
    if panel == "answered":
        axes.barh(range(len(lines)), [100 * (line.success_rate or 0.0) for line in lines], color="tab:green")
        axes.set(xlabel="answered, %", xlim=(0, 100))
        return
    for number, name in enumerate(_PERCENTILES):
        values = [getattr(getattr(line, panel), name) or 0.0 for line in lines]
        places = [place + (number - 1) * 0.27 for place in range(len(lines))]
        axes.barh(places, values, height=0.25, label=name.removesuffix("_ms"))
    axes.set(xlabel={"latency": "latency, ms", "first_content": "time to first content, ms"}[panel])
    axes.legend()
