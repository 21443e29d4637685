"""Real parts throughout: the packaged artefact, SQLite in a temporary folder, the openai SDK over loopback HTTP."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from databases import database_url, postgresql_server, postgresql_url  # noqa: F401 - fixtures
from hypothesis import settings

from router_ml import AsyncRouter, Catalog, ComplexityClassifier, Ledger, Router
from router_ml.simulator import Simulator

settings.register_profile("offline", derandomize=True, deadline=None)
settings.load_profile("offline")

MakeRouter = Callable[..., Any]
CATALOG = Catalog.load()
CANARY_KEY = "sk-canary-0123456789"
BUSY_MACHINE_S = 0.45  # what other work may add to a wait; less than any wait that a test must tell apart
HARD = "Prove that the sum of two odd squares is no square, then generalise to n squares."


@pytest.fixture(scope="session")
def classifier() -> ComplexityClassifier:
    return ComplexityClassifier.load()


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(lambda text: len(text.split()), output_tokens=20) as server:
        yield server


class Driven:
    """An AsyncRouter on a loop of its own, called as if it were a Router: one test serves both."""

    def __init__(self, router: AsyncRouter) -> None:
        self.router = router
        self.loop = asyncio.new_event_loop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.router, name)

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.router.complete(*args, **kwargs))

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        return DrivenStream(self, self.run(self.router.stream(*args, **kwargs)))

    def create(self, **kwargs: Any) -> Any:
        answer = self.run(self.router.openai.chat.completions.create(**kwargs))
        return DrivenStream(self, answer) if kwargs.get("stream") else answer

    def close(self) -> None:
        self.run(self.router.close())
        self.run(self.loop.shutdown_asyncgens())  # the SDK leaves some to the garbage collector
        leaked = asyncio.all_tasks(self.loop)
        self.loop.close()
        assert not leaked


class DrivenStream:
    def __init__(self, driven: Driven, stream: Any) -> None:
        self.driven, self.stream = driven, stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __iter__(self) -> Iterator[Any]:
        with suppress(StopAsyncIteration):
            while True:
                yield next(self)

    def __next__(self) -> Any:
        return self.driven.run(anext(self.stream))

    def close(self) -> None:
        self.driven.run(self.stream.close())


class Plain(Router):
    def create(self, **kwargs: Any) -> Any:
        return self.openai.chat.completions.create(**kwargs)


@pytest.fixture
def build(
    simulator: Simulator, classifier: ComplexityClassifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[MakeRouter]:
    """Routers whose providers all point at the simulator, with a canary for a key; ``faults`` maps a provider to a
    fault of its models, ``urls`` to another address; the other keywords are settings."""
    made: list[Any] = []

    def make(
        faults: dict[str, str] | None = None,
        *,
        urls: dict[str, str] | None = None,
        kind: str = "sync",
        ledger: Ledger | None = None,
        classifier: Any = classifier,
        catalog: Catalog = CATALOG,
        **changes: object,
    ) -> Any:
        providers = {
            name: replace(provider, base_url=(urls or {}).get(name, simulator.base_url), key_env="KEY")
            for name, provider in catalog.providers.items()
        }
        offers = tuple(
            replace(offer, model=f"{offer.model}!{fault}") if (fault := (faults or {}).get(offer.provider)) else offer
            for offer in catalog.offers
        )
        changed = replace(catalog, providers=providers, offers=offers, settings=replace(catalog.settings, **changes))
        parts: dict[str, Any] = {
            "classifier": classifier,
            "ledger": ledger or Ledger(f"sqlite:///{tmp_path}/router.db"),
            "environ": {"KEY": CANARY_KEY},
        }
        router = Plain(changed, **parts) if kind == "sync" else Driven(AsyncRouter(changed, **parts))
        made.append(router)
        return router

    yield make
    for router in made:
        router.close()
    assert CANARY_KEY not in caplog.text
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and CANARY_KEY.encode() in file.read_bytes()]


@pytest.fixture
def make_router(build: MakeRouter) -> MakeRouter:
    return build


@pytest.fixture(params=["sync", "async"])
def make_either(request: pytest.FixtureRequest, build: MakeRouter) -> MakeRouter:
    """``make_router`` for a test of Router and of AsyncRouter."""
    return lambda *args, **kwargs: build(*args, kind=request.param, **kwargs)


ASKS = {
    "simple": "what colour is the {} called",
    "complex": "compare three plans for the {} and recommend one with reasons",
    "premium": "prove the general theorem about the {} rigorously",
}
THINGS = [
    f"{a} {b}" for a in ("river", "engine", "garden", "market", "bridge") for b in ("north", "old", "red", "small")
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's embeddings of its own vocabulary take half a minute: once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A labelled file of 60 prompts, whose tier a few words tell."""
    rows = [
        {"id": f"{tier}{i}", "prompt": ask.format(thing), "task": "t", "language": "en", "tier": tier, "why": "w",
         "split": "test" if i % 4 == 0 else "train"}
        for tier, ask in ASKS.items()
        for i, thing in enumerate(THINGS)
    ]  # fmt: skip
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
