"""What routing costs over the bare openai SDK, and what failures cost: python -m training.bench_routing

The loopback provider runs in a process of its own, so that it does not share our interpreter. Calls through the SDK
and through the router take turns in one run; the ledger is on, SQLite in a temporary folder.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import numpy as np
import openai

from router_ml import AsyncRouter, Catalog, ComplexityClassifier, Ledger, Router
from router_ml.demo import workload

CONCURRENT = 50
_SERVE = """
import sys, threading
from router_ml.simulator import Simulator
with Simulator(len, output_tokens=2_000, latency_s=float(sys.argv[1]), keep_requests=False) as simulator:
    print(simulator.base_url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def provider(latency_s: float = 0.0) -> Iterator[str]:
    """Base URL of a loopback provider in another process; its answers are as long as a usual one, 2,000 characters."""
    with Popen([sys.executable, "-c", _SERVE, str(latency_s)], stdin=PIPE, stdout=PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        base_url = process.stdout.readline().strip()
        assert base_url, "the loopback provider did not start"
        yield base_url
        process.communicate()


def parts(base_url: str, folder: str, fault: str = "") -> dict[str, Any]:
    """A router's: every provider at ``base_url``, the first one with ``fault``."""
    catalog = Catalog.load()
    providers = {name: replace(p, base_url=base_url, key_env=None) for name, p in catalog.providers.items()}
    first = catalog.settings.route[0]
    offers = tuple(
        replace(offer, model=f"{offer.model}!{fault}") if fault and offer.provider == first else offer
        for offer in catalog.offers
    )
    path = Path(tempfile.mkdtemp(dir=folder)) / "bench.db"
    return {
        "config": replace(catalog, providers=providers, offers=offers),
        "classifier": ComplexityClassifier.load(),
        "ledger": Ledger(f"sqlite:///{path}"),
    }


def overhead(base_url: str, folder: str) -> None:
    bare, routed, peer = [], [], []
    with Router(**parts(base_url, folder)) as router:
        model = router.decide("hello", "simple").offers[0].model
        client = openai.OpenAI(api_key="none", base_url=base_url, max_retries=0)
        theirs = litellm_router(base_url) if find_spec("litellm") else None
        for prompt in workload() * 5:
            messages: list[Any] = [{"role": "user", "content": prompt}]
            started = time.perf_counter()
            client.chat.completions.create(model=model, messages=messages)
            between = time.perf_counter()
            router.complete(messages)
            bare.append(between - started)
            routed.append(time.perf_counter() - between)
            if theirs is not None:
                started = time.perf_counter()
                theirs.completion(model="any", messages=messages)
                peer.append(time.perf_counter() - started)
        client.close()
    extra_ms = (np.median(routed) - np.median(bare)) * 1_000
    print(
        f"bare SDK p50 {np.median(bare) * 1e3:.2f} ms; Router.complete p50 {np.median(routed) * 1e3:.2f} ms: ", end=""
    )
    print(f"{extra_ms:.2f} ms more, ledger on")
    if peer:
        their_ms = (np.median(peer) - np.median(bare)) * 1_000
        print(f"LiteLLM's Router, one model, nothing to decide: {their_ms:.2f} ms more")


def litellm_router(base_url: str) -> Any:
    """The peer, where it is installed: its Router before the same loopback provider."""
    import litellm

    params = {"model": "openai/any", "api_base": base_url, "api_key": "none"}
    return litellm.Router(model_list=[{"model_name": "any", "litellm_params": params}], num_retries=0)


async def throughput(base_url: str, folder: str, requests: int = 1_000, rounds: int = 5) -> None:
    """Requests a second at 50 concurrent, bare and routed in turn."""
    client = openai.AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0)
    prompts = (workload() * (requests // 100))[:requests]
    rates: dict[str, list[float]] = {"bare": [], "routed": []}
    async with AsyncRouter(**parts(base_url, folder)) as router:
        model = router.decide("hello", "simple").offers[0].model

        async def bare(prompt: str) -> None:
            await client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])

        for _ in range(rounds):
            rates["bare"].append(requests / await _concurrently(bare, prompts))
            rates["routed"].append(requests / await _concurrently(router.complete, prompts))
    await client.close()
    shares = np.array(rates["routed"]) / np.array(rates["bare"])
    theirs, ours = (f"{np.median(rates[name]):,.0f}/s" for name in ("bare", "routed"))
    print(
        f"{CONCURRENT} concurrent: AsyncOpenAI {theirs}, AsyncRouter {ours}: {np.median(shares):.0%} in turn, ", end=""
    )
    print(f"{shares.min():.0%} to {shares.max():.0%}")


async def _concurrently(call: Callable[[str], Awaitable[object]], prompts: list[str]) -> float:
    """Seconds for all of ``prompts``, ``CONCURRENT`` at a time."""
    queue = iter(prompts)

    async def worker() -> None:
        for prompt in queue:
            await call(prompt)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
    return time.perf_counter() - started


def failures(base_url: str, folder: str, requests: int = 1_000) -> None:
    """The primary fails some of 1,000 requests: who is answered, and with how many calls."""
    for percent in (1, 10, 50, 100):
        with Router(**parts(base_url, folder, f"500%{percent}")) as router:
            replies = [router.complete(prompt) for prompt in (workload() * (requests // 100))]
        calls = sum(len(reply.attempts) for reply in replies)
        print(f"primary failing {percent:3d} %: {len(replies) / requests:.1%} answered, ", end="")
        print(f"{calls / requests:.3f} calls a request")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, provider() as base_url:
        overhead(base_url, folder)
        asyncio.run(throughput(base_url, folder))
        failures(base_url, folder)
    with tempfile.TemporaryDirectory() as folder, provider(latency_s=0.1) as base_url:
        print("with a provider that takes 100 ms:")
        asyncio.run(throughput(base_url, folder))


if __name__ == "__main__":
    main()
