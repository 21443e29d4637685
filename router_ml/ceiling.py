"""The most a request can cost, so that a day's spend ceiling is kept before the bill is known.

An upper bound, not an estimate: a token stands for at least one byte of what is sent, an image or a file may fill the
whole context, and every attempt may be billed, by any of the offers: a breaker can pass over the first ones. A ceiling
is only as hard as its bound on the answer, so a request that sets no limit of its own is given one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

from router_ml import pricing
from router_ml.errors import ConfigError, InputError
from router_ml.types import Decision, Offer, Provider, Usage

_NANO = Decimal(1_000_000_000)
_UNKNOWN_CONTEXT_TOKENS = 1_000_000
_OTHER_PARTS = ("image_url", "input_audio", "file")
_LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True, slots=True)
class Reservation:
    """A decision to start a request with, and the most it can cost; without a ceiling nothing is reserved."""

    decision: Decision
    reserve_nanousd: int = 0
    ceiling_nanousd: int | None = None


def to_nanousd(usd: Decimal) -> int:
    return int((usd * _NANO).to_integral_value(rounding=ROUND_CEILING))


def bounded(params: Mapping[str, Any], output_tokens: int) -> dict[str, Any]:
    """``params`` with a limit on the answer: ``output_tokens`` where the caller sets none. Raises InputError."""
    return dict(params) if _limit(_body(params)) is not None else {**params, "max_tokens": output_tokens}


def most_nanousd(
    offers: Sequence[Offer],
    providers: Mapping[str, Provider],
    messages: Sequence[Any],
    params: Mapping[str, Any],
    *,
    max_attempts: int,
    at: datetime,
) -> int:
    """What ``max_attempts`` calls cost at the most, whichever of the offers they go to. ``params`` are ``bounded``.

    Raises:
        ConfigError: an offer has no known price, so that no ceiling can be kept with it.
        InputError: a limit or ``n`` that is no positive whole number.
    """
    body = _body(params)
    output_tokens = _limit(body)
    assert output_tokens is not None
    sent_bytes = len(json.dumps([messages, dict(params)], default=str))
    answers = 1 if body.get("n") is None else _whole("n", body["n"])
    worst = 0
    for offer in offers:
        context_tokens = offer.context_tokens or _UNKNOWN_CONTEXT_TOKENS
        input_tokens = context_tokens if _has_other_parts(messages) else sent_bytes
        usd = pricing.cost(offer, providers[offer.provider], Usage(input_tokens, output_tokens * answers), at).usd
        if usd is None:
            raise ConfigError(f"max_usd_per_day is set, but nobody knows the price of {offer}: give its offer a price")
        worst = max(worst, to_nanousd(usd))
    return worst * max_attempts


def _body(params: Mapping[str, Any]) -> dict[str, Any]:
    """As it is sent: ``extra_body`` overrules."""
    return {**params, **(params.get("extra_body") or {})}


def _limit(body: Mapping[str, Any]) -> int | None:
    limits = [_whole(name, body[name]) for name in _LIMITS if body.get(name) is not None]
    return max(limits, default=None)


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is no whole number above 0: under max_usd_per_day it must be one")
    return value


def _has_other_parts(messages: Sequence[Any]) -> bool:
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else getattr(message, "content", None)
        if isinstance(content, list | tuple) and any(
            isinstance(part, Mapping) and part.get("type") in _OTHER_PARTS for part in content
        ):
            return True
    return False
