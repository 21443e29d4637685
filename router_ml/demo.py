"""The 100-prompt workload of a SaaS product, routed through the loopback provider, and what that saves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from router_ml import pricing
from router_ml.catalog import Catalog
from router_ml.classifier import ComplexityClassifier
from router_ml.ledger import Ledger
from router_ml.router import Router
from router_ml.simulator import Simulator
from router_ml.tokenizer import WordPieceTokenizer
from router_ml.types import Completion, Tier, Usage

LIVE_PROMPTS = 5


@dataclass(frozen=True, slots=True)
class Savings:
    """What the same tokens cost as routed, all at premium, and all at the baseline model; USD, None where unknown."""

    routed_usd: Decimal | None
    premium_usd: Decimal | None
    baseline_usd: Decimal | None


def workload() -> list[str]:
    """The packaged prompts, from an installed wheel or a checkout."""
    package = Path(__file__).parent
    path = next(p for p in (package / "data", package.parent / "data") if p.is_dir()) / "workload.jsonl"
    return [json.loads(line)["prompt"] for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def simulated_router(config: str | Path | None = None) -> Iterator[Router]:
    """The configured router with every provider's address turned to a loopback provider, and a ledger of its own."""
    catalog = Catalog.load(config)
    classifier = ComplexityClassifier.load()
    with ExitStack() as stack:
        count = _tokenizer(classifier).count
        simulator = stack.enter_context(Simulator(count, output_tokens=catalog.settings.expected_output_tokens))
        providers = {
            name: replace(provider, base_url=simulator.base_url, key_env=None)
            for name, provider in catalog.providers.items()
        }
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        ledger = Ledger(f"sqlite:///{Path(folder).as_posix()}/demo.db", prompts="hash")
        yield stack.enter_context(Router(replace(catalog, providers=providers), classifier=classifier, ledger=ledger))


def savings(router: Router, replies: Sequence[Completion]) -> Savings:
    """Priced on the tokens that were returned, now."""
    now = datetime.now(UTC)
    routed = _total(reply.cost_usd for reply in replies)
    premium = router.catalog.routed(Tier.PREMIUM)[0]
    seller = router.catalog.providers[premium.provider]
    baseline_provider, _, baseline_model = router.settings.baseline.partition("/")
    usages = [reply.usage or Usage(0, 0) for reply in replies]
    return Savings(
        routed,
        _total(pricing.cost(premium, seller, usage, now).usd for usage in usages),
        _total(pricing.list_price(baseline_provider, baseline_model, usage, now).usd for usage in usages),
    )


def _total(costs: Iterator[Decimal | None]) -> Decimal | None:
    known = list(costs)
    return None if None in known else sum((cost for cost in known if cost is not None), Decimal(0))


def _tokenizer(classifier: ComplexityClassifier) -> WordPieceTokenizer:
    tokenizer = getattr(classifier.encoder, "tokenizer", None)
    assert isinstance(tokenizer, WordPieceTokenizer)
    return tokenizer
