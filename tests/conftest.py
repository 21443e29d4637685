"""Real parts throughout: the packaged artefact, SQLite in a temporary folder, the openai SDK over loopback HTTP."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from databases import database_url, postgresql_server, postgresql_url  # noqa: F401 - fixtures
from hypothesis import settings

from router_ml import Catalog, ComplexityClassifier, Ledger, Router
from router_ml.simulator import Simulator

settings.register_profile("offline", derandomize=True, deadline=None)
settings.load_profile("offline")

MakeRouter = Callable[..., Router]


@pytest.fixture(scope="session")
def classifier() -> ComplexityClassifier:
    return ComplexityClassifier.load()


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(lambda text: len(text.split()), output_tokens=20) as server:
        yield server


@pytest.fixture
def make_router(simulator: Simulator, classifier: ComplexityClassifier, tmp_path: Path) -> Iterator[MakeRouter]:
    """A router whose providers all point at the simulator; ``faults`` maps a provider to a fault of its models."""
    made: list[Router] = []

    def make(faults: dict[str, str] | None = None, **changes: object) -> Router:
        catalog = Catalog.load()
        providers = {
            name: replace(provider, base_url=simulator.base_url, key_env=None)
            for name, provider in catalog.providers.items()
        }
        offers = tuple(
            replace(offer, model=f"{offer.model}!{fault}") if (fault := (faults or {}).get(offer.provider)) else offer
            for offer in catalog.offers
        )
        changed = replace(catalog.settings, **changes)
        ledger = Ledger(f"sqlite:///{tmp_path}/router.db")
        router = Router(
            replace(catalog, providers=providers, offers=offers, settings=changed), classifier=classifier, ledger=ledger
        )
        made.append(router)
        return router

    yield make
    for router in made:
        router.close()
