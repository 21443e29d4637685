"""Usage x price at a time -> exact cost, with its source.

In this order: what the provider reports, the offer's own price, genai-prices under the provider's id. Where none knows,
the cost is None: an unknown cost is never 0.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from router_ml.types import Cost, Offer, Price, Provider, Usage

ZERO = Decimal(0)
_MTOK = Decimal(1_000_000)


def cost(
    offer: Offer, provider: Provider, usage: Usage | None, at: datetime, *, reported_usd: Decimal | None = None
) -> Cost:
    """What ``usage`` costs at time ``at`` (UTC: some prices differ by hour). None where nobody can say."""
    if reported_usd is not None:
        return Cost(reported_usd, "provider")
    if usage is None:
        return Cost(None)
    if offer.price is not None:
        return Cost(_own_price(offer.price, usage), "offer")
    if provider.free:
        return Cost(Decimal(0), "free")
    if provider.price_provider is None:
        return Cost(None)
    return list_price(provider.price_provider, offer.model, usage, at)


def list_price(price_provider: str, model: str, usage: Usage, at: datetime) -> Cost:
    """The cost by genai-prices' data, None for a model it does not know. ``price_provider`` is its provider id."""
    import genai_prices

    counts = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=min(usage.cached_input_tokens, usage.input_tokens),
        output_tokens=usage.output_tokens,
    )
    try:
        calculation = genai_prices.calc_price(
            counts, model_ref=model, provider_id=price_provider, genai_request_timestamp=at
        )
    except LookupError:
        return Cost(None)
    return Cost(calculation.total_price, "genai-prices")


def _own_price(price: Price, usage: Usage) -> Decimal:
    cached = min(usage.cached_input_tokens, usage.input_tokens)
    cached_rate = price.input_mtok if price.cache_read_mtok is None else price.cache_read_mtok
    total = (
        (usage.input_tokens - cached) * price.input_mtok
        + cached * cached_rate
        + usage.output_tokens * price.output_mtok
    )
    return total / _MTOK
