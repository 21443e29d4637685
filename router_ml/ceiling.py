"""The most a request can cost, so that a day's spend ceiling is kept before the bill is known.

An upper bound, not an estimate: a token stands for at least one byte of what is sent, an image or a file may fill the
whole context, and every attempt may be billed. A ceiling is only as hard as its bound on the answer, so a request that
sets no limit of its own is given one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

from router_ml import pricing
from router_ml.errors import ConfigError
from router_ml.types import Offer, Provider, Usage

_NANO = Decimal(1_000_000_000)
_UNKNOWN_CONTEXT_TOKENS = 1_000_000
_OTHER_PARTS = ("image_url", "input_audio", "file")


def to_nanousd(usd: Decimal) -> int:
    return int((usd * _NANO).to_integral_value(rounding=ROUND_CEILING))


def most_nanousd(
    offers: Sequence[Offer],
    providers: Mapping[str, Provider],
    messages: Sequence[Any],
    params: Mapping[str, Any],
    *,
    output_tokens: int,
    max_attempts: int,
    at: datetime,
) -> int:
    """What ``max_attempts`` calls cost at the most, whichever of the offers they go to; they are tried in order, so
    those further back are never reached. ``output_tokens`` is the limit the request carries.

    Raises ConfigError where an offer has no known price: no ceiling can be kept with it.
    """
    sent_bytes = len(json.dumps([messages, dict(params)], default=str))
    answers = params.get("n") or 1
    worst = 0
    for offer in offers[:max_attempts]:
        context_tokens = offer.context_tokens or _UNKNOWN_CONTEXT_TOKENS
        input_tokens = context_tokens if _has_other_parts(messages) else sent_bytes
        usd = pricing.cost(offer, providers[offer.provider], Usage(input_tokens, output_tokens * answers), at).usd
        if usd is None:
            raise ConfigError(f"max_usd_per_day is set, but nobody knows the price of {offer}: give its offer a price")
        worst = max(worst, to_nanousd(usd))
    return worst * max_attempts


def _has_other_parts(messages: Sequence[Any]) -> bool:
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else getattr(message, "content", None)
        if isinstance(content, list | tuple) and any(
            isinstance(part, Mapping) and part.get("type") in _OTHER_PARTS for part in content
        ):
            return True
    return False
