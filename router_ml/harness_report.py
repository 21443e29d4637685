"""From measured requests to one table of comparison: pure, in memory bounded by the number of its lines.

A line counts the requests that share a value of one dimension (a provider, a task, a day ...), in one region or in all.
Simulated and real requests never share a line. Latencies are those of answered requests; a percentile is the nearest
rank's, to within ``ACCURACY``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from router_ml.harness_journal import Measurement, Numbers, Run

ACCURACY = 0.005
DIMENSIONS = ("all", "concurrency", "provider", "model", "task", "tier", "mode", "day")
ALL_REGIONS = "all regions"
_LOG_GAMMA = math.log((1 + ACCURACY) / (1 - ACCURACY))
_SMALLEST = 1e-3


class Digest:
    """Quantiles of positive numbers in bounded memory: counts in buckets whose width grows with the value, so that the
    relative error is at most ``ACCURACY`` (DDSketch: Masson, Rim and Lee, VLDB 2019). Below 0.001 all are one."""

    def __init__(self) -> None:
        self._buckets = Counter[int]()

    def add(self, value: float) -> None:
        self._buckets[math.ceil(math.log(max(value, _SMALLEST)) / _LOG_GAMMA)] += 1

    def quantile(self, share: float) -> float | None:
        """The value of the nearest rank, None where there is none; ``share`` in (0, 1]."""
        rank = math.ceil(share * self._buckets.total())
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return math.exp(bucket * _LOG_GAMMA) * (1 - ACCURACY)
        return None


@dataclass(frozen=True, slots=True)
class Percentiles:
    """In milliseconds; None where nothing was measured."""

    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None

    @classmethod
    def of(cls, digest: Digest) -> Percentiles:
        return cls(digest.quantile(0.50), digest.quantile(0.95), digest.quantile(0.99))


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    ``failovers`` are attempts beyond each request's first. ``failed_calls`` are attempts that failed, counted at the
    provider or model that failed, elsewhere in the table with their request. ``cost_usd`` sums what is known:
    ``cost_unknown`` requests are not in it, ``cost_estimated`` ones are, from our own count of tokens.
    """

    simulated: bool
    dimension: str
    value: str
    region: str
    requests: int
    answered: int
    latency: Percentiles
    first_content: Percentiles
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    cost_estimated: int
    cost_unknown: int
    failovers: int
    failed_calls: int
    errors: dict[str, int]

    @property
    def success_rate(self) -> float | None:
        """None for an offer that was only tried, and never the last of a request."""
        return self.answered / self.requests if self.requests else None


@dataclass(frozen=True, slots=True)
class Report:
    """``repeated`` requests were read twice, from a file given twice or copied into another, and counted once."""

    lines: tuple[Line, ...]
    regions: tuple[str, ...]
    repeated: int

    @property
    def simulated(self) -> bool:
        """Whether any of it is."""
        return any(line.simulated for line in self.lines)

    def of(self, dimension: str) -> list[Line]:
        return [line for line in self.lines if line.dimension == dimension]


class _Sum:
    """A line being added up."""

    def __init__(self) -> None:
        self.latency, self.first_content = Digest(), Digest()
        self.counts, self.errors = Counter[str](), Counter[str]()
        self.cost_usd = Decimal(0)

    def add(self, measured: Measurement) -> None:
        counts = self.counts
        counts["requests"] += 1
        counts["failovers"] += max(0, (measured.attempts or 0) - 1)
        counts["input_tokens"] += measured.input_tokens or 0
        counts["output_tokens"] += measured.output_tokens or 0
        counts["cost_estimated"] += measured.cost_source == "estimate"
        counts["cost_unknown"] += measured.cost_usd is None
        self.cost_usd += measured.cost_usd or 0
        if measured.error is not None:
            self.errors[measured.error] += 1
            return
        counts["answered"] += 1
        self.latency.add(measured.latency_ms)
        if measured.first_content_ms is not None:
            self.first_content.add(measured.first_content_ms)

    def line(self, simulated: bool, dimension: str, value: str, region: str) -> Line:
        counts = self.counts
        return Line(
            simulated,
            dimension,
            value,
            region,
            counts["requests"],
            counts["answered"],
            Percentiles.of(self.latency),
            Percentiles.of(self.first_content),
            counts["input_tokens"],
            counts["output_tokens"],
            self.cost_usd,
            counts["cost_estimated"],
            counts["cost_unknown"],
            counts["failovers"],
            counts["failed_calls"],
            dict(self.errors),
        )


def summarise(rows: Iterable[tuple[Run, Measurement]]) -> Report:
    """One table of everything, in the order of ``DIMENSIONS``; with lines over all regions where there are several."""
    sums: dict[tuple[bool, str, str, str], _Sum] = {}
    seen: dict[tuple[str, int], Numbers] = {}
    repeated = 0
    for run, measured in rows:
        if not seen.setdefault((run.run_id, measured.concurrency), Numbers()).add(measured.number):
            repeated += 1
            continue
        for region in (run.plan.region, ALL_REGIONS):
            for dimension, value in _values(run, measured).items():
                sums.setdefault((measured.simulated, dimension, value, region), _Sum()).add(measured)
            for dimension, value in _failures(run, measured):
                key = (measured.simulated, dimension, value, region)
                sums.setdefault(key, _Sum()).counts["failed_calls"] += 1
    regions = sorted({region for *_, region in sums} - {ALL_REGIONS})
    shown = {key: total for key, total in sums.items() if len(regions) > 1 or key[3] != ALL_REGIONS}
    return Report(tuple(shown[key].line(*key) for key in sorted(shown, key=_order)), tuple(regions), repeated)


def _values(run: Run, measured: Measurement) -> dict[str, str]:
    """What a request is counted under: its value in each dimension."""
    return {
        "all": "all",
        "concurrency": f"{measured.concurrency}{' streams' if run.plan.stream else ''}",
        "provider": measured.provider,
        "model": f"{measured.provider}/{measured.model}",
        "task": measured.task,
        "tier": measured.tier,
        "mode": "stream" if run.plan.stream else "whole",
        "day": measured.ended_at[:10],
    }


def _failures(run: Run, measured: Measurement) -> list[tuple[str, str]]:
    """Dimension and value of each failed call."""
    own = _values(run, measured)
    return [
        (dimension, {"provider": provider, "model": f"{provider}/{model}"}.get(dimension, own[dimension]))
        for provider, model in measured.failed_at
        for dimension in DIMENSIONS
    ]


def _order(key: tuple[bool, str, str, str]) -> tuple[bool, int, int, str, bool, str]:
    simulated, dimension, value, region = key
    number = int(value.partition(" ")[0]) if dimension == "concurrency" else 0
    return (simulated, DIMENSIONS.index(dimension), number, value, region == ALL_REGIONS, region)
