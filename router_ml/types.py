"""The records that pass between modules: frozen, with the unit in the name; derived values are properties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion


class Tier(StrEnum):
    """A class of models, ordered by strength: ``Tier.SIMPLE < Tier.COMPLEX < Tier.PREMIUM``."""

    SIMPLE = "simple"
    COMPLEX = "complex"
    PREMIUM = "premium"

    @property
    def rank(self) -> int:
        """0, 1, 2 from the weakest to the strongest."""
        return _RANK[self]

    def __lt__(self, other: str) -> bool:
        return self.rank < Tier(other).rank

    def __le__(self, other: str) -> bool:
        return self.rank <= Tier(other).rank

    def __gt__(self, other: str) -> bool:
        return self.rank > Tier(other).rank

    def __ge__(self, other: str) -> bool:
        return self.rank >= Tier(other).rank


TIERS: tuple[Tier, ...] = tuple(Tier)
CAPABILITIES = frozenset({"text", "tools", "json_schema", "images"})
_RANK: dict[str, int] = {tier: rank for rank, tier in enumerate(TIERS)}


@dataclass(frozen=True, slots=True)
class Complexity:
    """What the classifier says of one prompt.

    ``success`` is P(acceptable answer | tier), non-decreasing from simple to premium. The class probabilities follow
    from it: a tier is *needed* where it succeeds and the tier below does not; a prompt that no tier can answer counts
    as simple, since paying more would not help. ``familiarity`` is the share of calibration prompts less like the
    training data than this one: near 0 the classifier has seen nothing like it.
    """

    success: Mapping[Tier, float]
    classifier_version: str
    familiarity: float = 1.0

    @property
    def probabilities(self) -> dict[Tier, float]:
        """P(tier is the cheapest that answers acceptably), summing to 1."""
        simple, complex_, premium = (self.success[tier] for tier in TIERS)
        return {
            Tier.SIMPLE: simple + (1.0 - premium),
            Tier.COMPLEX: complex_ - simple,
            Tier.PREMIUM: premium - complex_,
        }

    @property
    def tier(self) -> Tier:
        """The median tier: the needed one is above it with a chance of at most a half. It has the least expected
        distance: a miss by two tiers counts twice. What is routed to is the policy's choice, not this."""
        at_most = accumulate(self.probabilities[tier] for tier in TIERS)
        return next((tier for tier, share in zip(TIERS, at_most, strict=True) if share >= 0.5), Tier.PREMIUM)

    @property
    def confidence(self) -> float:
        """Probability of ``tier``."""
        return self.probabilities[self.tier]


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens, as an offer states it in place of the price list; with its source and date."""

    input_mtok: Decimal
    output_mtok: Decimal
    cache_read_mtok: Decimal | None = None
    source: str = ""
    as_of: date | None = None


@dataclass(frozen=True, slots=True)
class Provider:
    """One OpenAI-compatible endpoint and where it differs, as data (the adapter profile).

    ``stream_usage`` says how token counts of a stream are had: ``request`` (ask with ``stream_options``), ``always``
    (sent unasked) or ``unsupported``. ``retry_without`` are optional parameters: a 400 or 422 that names one
    is answered by one more call without it. ``key_env`` is None where no key is needed; ``free`` prices each call at 0.
    """

    name: str
    base_url: str
    key_env: str | None = None
    price_provider: str | None = None
    free: bool = False
    drop_params: frozenset[str] = frozenset()
    drop_message_fields: frozenset[str] = frozenset()
    rename_params: Mapping[str, str] = field(default_factory=dict)
    rename_values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    max_temperature: float | None = None
    retry_without: frozenset[str] = frozenset()
    stream_usage: Literal["request", "always", "unsupported"] = "request"
    extra_body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that a provider sells, and the tier it is good for.

    ``capabilities`` is what it can do, all of it (``CAPABILITIES``; ``text`` goes without saying), or empty where
    nobody said: an unknown model may serve anything, a known one only what is listed. So with ``context_tokens``.
    """

    provider: str
    model: str
    tier: Tier
    context_tokens: int | None = None
    capabilities: frozenset[str] = frozenset()
    price: Price | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True)
class Decision:
    """Which tier, which offers in the order to try, and why. ``complexity`` is None where nothing was classified."""

    tier: Tier
    offers: tuple[Offer, ...]
    reason: str
    complexity: Complexity | None = None
    quality: float | None = None
    propensity: float = 1.0
    policy_version: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one call. ``cached_input_tokens`` are part of ``input_tokens``, ``reasoning_tokens`` of
    ``output_tokens``."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call cost. ``usd`` is None where nobody knows: an unknown cost is never 0."""

    usd: Decimal | None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to one offer: answered where ``error`` is None, else what went wrong in a few words.

    ``first_content_ms`` is how long a stream's first content took; None where the answer came whole or not at all.
    """

    offer: Offer
    started_at: datetime
    duration_ms: float
    usage: Usage | None = None
    cost: Cost = Cost(None)
    error: str | None = None
    first_content_ms: float | None = None

    @property
    def answered(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class Routed:
    """What was decided, tried and paid for one request that was answered, by the last of ``attempts``."""

    request_id: str
    decision: Decision
    attempts: tuple[Attempt, ...]

    @property
    def offer(self) -> Offer:
        """The offer that answered."""
        return self.attempts[-1].offer

    @property
    def tier(self) -> Tier:
        """Tier of the model that answered; a stronger one than ``decision.tier`` where that tier's offers failed."""
        return self.offer.tier

    @property
    def model(self) -> str:
        return self.offer.model

    @property
    def provider(self) -> str:
        return self.offer.provider

    @property
    def usage(self) -> Usage | None:
        return self.attempts[-1].usage

    @property
    def cost_usd(self) -> Decimal | None:
        """What the answer cost, with every failed attempt that was billed; None where the answer's cost is unknown."""
        if self.attempts[-1].cost.usd is None:
            return None
        return sum((attempt.cost.usd for attempt in self.attempts if attempt.cost.usd is not None), Decimal(0))


@dataclass(frozen=True, slots=True)
class Completion(Routed):
    """A whole answer. ``response`` is the openai SDK's own object."""

    text: str
    response: ChatCompletion


@dataclass(frozen=True, slots=True)
class Outcome:
    """How good an answer was: ``score`` in 0..1, from a user, a judge, a rule or an escalation."""

    request_id: str
    score: float
    source: str
    noted_at: datetime
